"""Statements that run thousands of times a second: compiled once, then handed to the driver as they are.

SQLAlchemy's own execution of a cached statement costs 60 to 90 us, as much as a driver's, and more than SQLite needs to
carry it out. A prepared one costs 2 us: its text and the conversions of its parameters are worked out once for each
dialect, and it runs on the driver's cursor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, bindparam, insert

from balsam_core.schema.types import UTCDateTime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import BindParameter, ColumnElement, Dialect, Executable, Table
    from sqlalchemy.engine.interfaces import DBAPICursor

__all__ = ["Insertion", "Prepared", "PreparedList", "RawResult", "Rows"]


class Prepared:
    """A statement without lists of variable length; its rows come as the driver gives them.

    So they are numbers, texts and bytes; what needs conversion, :meth:`mappings` gives.

    Args:
        statement: The statement. An INSERT that leaves out a key that the database gives must be ``inline()``.
        columns: For an INSERT, the columns to be given; else None.
        returns: The columns of the result, for :meth:`mappings`.
    """

    def __init__(
        self,
        statement: Executable,
        columns: Sequence[str] | None = None,
        returns: Sequence[ColumnElement[Any]] = (),
    ) -> None:
        self._statement = statement
        self._columns = columns
        self._returns = returns
        self._names = [str(column.key) for column in returns]
        self._readers: dict[str, list[tuple[int, Callable[[Any], Any]]]] = {}
        self._compiled: dict[str, _Compiled] = {}

    def bind(self, dialect: Dialect, parameters: Any = None) -> tuple[str, Any]:  # noqa: ANN401  (as the driver wants it)
        """Return the text and its parameters for a driver, of a mapping or a list of them."""
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, self._columns, dialect)
        if type(parameters) is list:
            return compiled.text, [compiled.bind(one) for one in parameters]
        return compiled.text, compiled.bind(parameters or {})

    def mappings(self, dialect: Dialect, rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
        """Return rows of the result by name, with values as the columns' types have them."""
        readers = self._readers.get(dialect.name)
        if readers is None:
            types = [column.type.dialect_impl(dialect) for column in self._returns]
            found = [(place, kind.result_processor(dialect, None)) for place, kind in enumerate(types)]
            readers = self._readers[dialect.name] = [(place, reader) for place, reader in found if reader is not None]
        converted = []
        for row in rows:
            values = list(row)
            for place, reader in readers:
                values[place] = reader(values[place])
            converted.append(dict(zip(self._names, values, strict=True)))
        return converted


class PreparedList:
    """A prepared statement with a list of numbers: prepared for lengths that are powers of two.

    Args:
        make: Makes the statement for the parameters that stand for the numbers; a number may come more than once.
    """

    def __init__(self, make: Callable[[list[BindParameter[int]]], Executable]) -> None:
        self._make = make
        self._by_length: dict[int, tuple[Prepared, list[str]]] = {}

    def fill(self, numbers: Sequence[int], **parameters: Any) -> tuple[Prepared, dict[str, Any]]:  # noqa: ANN401
        """Return the statement and its parameters, for at least one number."""
        length = 1 << (len(numbers) - 1).bit_length()
        found = self._by_length.get(length)
        if found is None:
            names = [f"number_{place}" for place in range(length)]
            made = Prepared(self._make([bindparam(name, type_=BigInteger()) for name in names]))
            found = self._by_length[length] = (made, names)
        statement, names = found
        parameters.update(zip(names, chain(numbers, repeat(numbers[-1])), strict=False))
        return statement, parameters


@dataclass(frozen=True)
class Rows:
    """Rows of a table, given by columns: whole columns are converted and put together much faster than single values.

    Attributes:
        count: How many there are.
        same: Values that all rows share, by column.
        columns: The values of the other columns; at least one.
    """

    count: int
    same: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Sequence[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def put(self, name: str, values: Sequence[Any]) -> None:
        """Set a column of values that can be hashed, which may turn out to be all the same."""
        if len(set(values)) == 1:
            self.same[name] = values[0]
        else:
            self.columns[name] = values


class Insertion:
    """An INSERT into a table. Columns that would be NULL in all rows are left out.

    Args:
        table: The table; a key that the database gives is not filled.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._names = [column.name for column in table.columns]
        self._texts: dict[tuple[str, tuple[str, ...]], str] = {}
        self._converts: dict[str, dict[str, Callable[[Any], Any]]] = {}

    def bind(self, dialect: Dialect, rows: Rows, *, at_once: bool) -> tuple[str, Any]:
        """Return the text and its parameters for a driver: of one statement with all rows, or a list of them.

        Args:
            dialect: The driver's.
            rows: What to insert.
            at_once: Whether a driver's executemany costs about as much as one statement for each row.
        """
        _, columns, values = self.as_rows(dialect, rows)
        text = self._text(dialect, columns)
        if not at_once or len(values) > ONE_STATEMENT:
            return text, values
        marks = text.rpartition(" VALUES ")[2]
        return text + f", {marks}" * (len(values) - 1), tuple(chain.from_iterable(values))

    def as_rows(self, dialect: Dialect, rows: Rows) -> tuple[str, tuple[str, ...], list[tuple[Any, ...]]]:
        """Return the table's name, columns, and rows of values in the driver's form."""
        convert = self._converts.get(dialect.name)
        if convert is None:
            found = {one.name: one.type.dialect_impl(dialect).bind_processor(dialect) for one in self.table.columns}
            convert = self._converts[dialect.name] = {name: one for name, one in found.items() if one}
        names = []
        columns: list[Any] = []
        for name in self._names:  # in the table's order, as in the statement
            if name in rows.columns:
                values = rows.columns[name]
                columns.append(map(convert[name], values) if name in convert else values)
            elif rows.same.get(name) is not None:
                value = rows.same[name]
                columns.append(repeat(convert[name](value) if name in convert else value, rows.count))
            else:
                continue
            names.append(name)
        return self.table.name, tuple(names), list(zip(*columns, strict=True))

    def _text(self, dialect: Dialect, columns: tuple[str, ...]) -> str:
        key = (dialect.name, columns)
        text = self._texts.get(key)
        if text is None:
            if len(self._texts) > MOST_TEXTS:
                self._texts.clear()
            compiled: Any = insert(self.table).inline().compile(dialect=dialect, column_keys=list(columns))
            text = str(compiled) if compiled.positional else str(compiled) % dict.fromkeys(columns, "%s")
            self._texts[key] = text
        return text


ONE_STATEMENT = 64  # rows
MOST_TEXTS = 200  # sets of columns whose INSERT is kept


class RawResult:
    """The little of SQLAlchemy's result that prepared statements need; to be read before the next one runs."""

    __slots__ = ("_cursor",)

    def __init__(self, cursor: DBAPICursor) -> None:
        self._cursor = cursor

    @property
    def rowcount(self) -> int:
        """How many rows were changed."""
        return self._cursor.rowcount

    def first(self) -> Any:  # noqa: ANN401
        """Return the first row, None where there is none."""
        return self._cursor.fetchone()

    def all(self) -> Sequence[Any]:
        """Return all rows."""
        return self._cursor.fetchall()

    def scalar(self) -> Any:  # noqa: ANN401
        """Return the first row's first value, None where there is no row."""
        row = self._cursor.fetchone()
        return None if row is None else row[0]

    def scalar_one(self) -> Any:  # noqa: ANN401
        """Return the first value of a row that there must be."""
        row = self._cursor.fetchone()
        if row is None:
            msg = "there is no row where there must be one"
            raise LookupError(msg)
        return row[0]


class _Compiled:
    def __init__(self, statement: Executable, columns: Sequence[str] | None, dialect: Dialect) -> None:
        compiled: Any = statement.compile(dialect=dialect, column_keys=columns)  # type: ignore[attr-defined]
        self.text = str(compiled)
        self._positional = bool(compiled.positional)
        self._names: list[str] = list(compiled.positiontup if compiled.positional else compiled.bind_names.values())
        self._convert: dict[str, Callable[[Any], Any]] = {}
        self._fixed: dict[str, Any] = {}
        for name, bind in compiled.binds.items():
            convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
            if convert is not None:
                self._convert[name] = _remembering(convert) if isinstance(bind.type, UTCDateTime) else convert
            if not bind.required:
                self._fixed[name] = bind.value

    def bind(self, given: Mapping[str, Any]) -> Any:  # noqa: ANN401  (a tuple or a mapping, as the driver wants it)
        """Return the parameters in the driver's form."""
        values = {**self._fixed, **given} if self._fixed else given
        convert = self._convert
        if self._positional:
            return tuple([convert[name](values[name]) if name in convert else values[name] for name in self._names])
        return {name: convert[name](values[name]) if name in convert else values[name] for name in self._names}


def _remembering(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a conversion that knows its last value: all rows of a transaction carry the same time."""
    kept: tuple[Any, Any] = (None, None)  # one object, since threads share it

    def remembered(value: Any) -> Any:  # noqa: ANN401
        nonlocal kept
        last, converted = kept
        if value is not last:
            converted = convert(value)
            kept = (value, converted)
        return converted

    return remembered
