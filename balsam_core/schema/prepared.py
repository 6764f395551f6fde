"""Statements that run thousands of times a second: compiled once, then given to the driver as they are.

SQLAlchemy's own execution of a cached statement costs 60 to 90 us, as much as a driver's, and more than SQLite needs to
execute it. A prepared one costs 2 us: its text and the conversions of its parameters are worked out once for each
dialect, and it runs on the driver's cursor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, bindparam, insert

from balsam_core.schema.types import UTCDateTime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import BindParameter, ColumnElement, Dialect, Executable, Table


class Prepared:
    """A statement without lists of variable length.

    Its rows come as the driver gives them: numbers, texts and bytes. :meth:`columns` converts them.

    Args:
        statement: The statement. An INSERT that leaves out a key that the database gives must be ``inline()``.
        columns: For an INSERT, the columns to be given; else None.
        returns: The columns of the result, for :meth:`columns`.
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
        self._readers: dict[str, list[tuple[str, Callable[[Any], Any]]]] = {}
        self._compiled: dict[str, _Compiled] = {}

    def bind(self, dialect: Dialect, parameters: Any = None) -> tuple[str, Any]:  # noqa: ANN401  (as the driver wants it)
        """Return the text and its parameters for a driver, of a mapping or a list of them."""
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, self._columns, dialect)
        if type(parameters) is list:
            return compiled.text, [compiled.bind(one) for one in parameters]
        return compiled.text, compiled.bind(parameters or {})

    def columns(self, dialect: Dialect, rows: Sequence[Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """Return the columns of the result by name, with values as their types have them; none without a row.

        Equal values of the driver become one object.
        """
        readers = self._readers.get(dialect.name)
        if readers is None:
            types = [(str(column.key), column.type.dialect_impl(dialect)) for column in self._returns]
            found = [(name, kind.result_processor(dialect, None)) for name, kind in types]
            readers = self._readers[dialect.name] = [(name, reader) for name, reader in found if reader is not None]
        if not rows:
            return {}
        columns: dict[str, Sequence[Any]] = dict(zip(self._names, zip(*rows, strict=True), strict=True))
        for name, reader in readers:
            known = {value: reader(value) for value in set(columns[name])}
            columns[name] = [known[value] for value in columns[name]]
        return columns


def padded_length(length: int) -> int:
    """Return the length for which a list is prepared: a power of four, since preparing takes milliseconds."""
    return 1 << -(-(length - 1).bit_length() // 2) * 2


class PreparedList:
    """A prepared statement with a list of ids: prepared for some lengths, and padded with the last id.

    ``make`` makes it for the parameters that stand for the ids; an id may come more than once. ``returns`` is as in
    :class:`Prepared`.
    """

    def __init__(
        self, make: Callable[[list[BindParameter[int]]], Executable], returns: Sequence[ColumnElement[Any]] = ()
    ) -> None:
        self._make = make
        self._returns = returns
        self._by_length: dict[int, tuple[Prepared, list[str]]] = {}

    def fill(self, ids: Sequence[int], **parameters: Any) -> tuple[Prepared, dict[str, Any]]:  # noqa: ANN401
        """Return the statement and its parameters, for at least one id."""
        length = padded_length(len(ids))
        found = self._by_length.get(length)
        if found is None:
            names = [f"id_{index}" for index in range(length)]
            made = Prepared(self._make([bindparam(name, type_=BigInteger()) for name in names]), returns=self._returns)
            found = self._by_length[length] = (made, names)
        statement, names = found
        parameters.update(zip(names, chain(ids, repeat(ids[-1])), strict=False))
        return statement, parameters


@dataclass(frozen=True)
class Rows:
    """Rows of a table, given by columns: converting whole columns is much faster than converting single values.

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
        """Set a column of values that can be hashed and are often all the same."""
        if len(set(values)) == 1:
            self.same[name] = values[0]
        else:
            self.columns[name] = values


class Insertion:
    """An INSERT into a table, without columns that would be NULL in all rows and keys that the database gives."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._names = [column.name for column in table.columns]
        self._texts: dict[tuple[str, tuple[str, ...]], str] = {}
        self._converts: dict[str, dict[str, Callable[[Any], Any]]] = {}

    def bind(self, dialect: Dialect, rows: Rows, *, at_once: bool) -> tuple[str, Any]:
        """Return the text and its parameters for a driver: of one statement with all rows, or a list of them.

        The first is for drivers whose executemany costs about as much as one statement for each row.
        """
        _, columns, values = self.as_rows(dialect, rows)
        text = self._insert_text(dialect, columns)
        if not at_once or len(values) > ROWS_IN_STATEMENT:
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

    def _insert_text(self, dialect: Dialect, columns: tuple[str, ...]) -> str:
        key = (dialect.name, columns)
        text = self._texts.get(key)
        if text is None:
            if len(self._texts) > MAX_TEXTS:
                self._texts.clear()
            compiled: Any = insert(self.table).inline().compile(dialect=dialect, column_keys=list(columns))
            text = str(compiled) if compiled.positional else str(compiled) % dict.fromkeys(columns, "%s")
            self._texts[key] = text
        return text


ROWS_IN_STATEMENT = 64
MAX_TEXTS = 200  # sets of columns whose INSERT is kept


class _Compiled:
    def __init__(self, statement: Executable, columns: Sequence[str] | None, dialect: Dialect) -> None:
        compiled: Any = statement.compile(dialect=dialect, column_keys=columns)  # type: ignore[attr-defined]
        self.text = str(compiled)
        self._positional = bool(compiled.positional)
        self._names: list[str] = list(compiled.positiontup if compiled.positional else compiled.bind_names.values())
        self._fixed: dict[str, Any] = {}
        convert: dict[str, Callable[[Any], Any]] = {}
        for name, bind in compiled.binds.items():
            found = bind.type.dialect_impl(dialect).bind_processor(dialect)
            if found is not None:
                convert[name] = _with_last_value(found) if isinstance(bind.type, UTCDateTime) else found
            if not bind.required:
                self._fixed[name] = bind.value
        self._convert = [(at, convert[name]) for at, name in enumerate(self._names) if name in convert]

    def bind(self, given: Mapping[str, Any]) -> Any:  # noqa: ANN401  (a tuple or a mapping, as the driver wants it)
        """Return the parameters in the driver's form."""
        given = {**self._fixed, **given} if self._fixed else given
        values = [given[name] for name in self._names]
        for at, convert in self._convert:
            values[at] = convert(values[at])
        return tuple(values) if self._positional else dict(zip(self._names, values, strict=True))


def _with_last_value(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a conversion that keeps its last value: all rows of a transaction hold the same time."""
    kept: tuple[Any, Any] = (None, None)  # one object, since threads share it

    def convert_or_repeat(value: Any) -> Any:  # noqa: ANN401
        nonlocal kept
        last, converted = kept
        if value is not last:
            converted = convert(value)
            kept = (value, converted)
        return converted

    return convert_or_repeat
