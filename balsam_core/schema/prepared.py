"""Statements that run thousands of times a second: compiled once, then handed to the driver as they are.

SQLAlchemy's own execution of a cached statement costs 40 to 90 us, which is more than SQLite needs to carry it out. A
prepared one costs 6 us: its text and the conversions of its parameters are worked out once for each dialect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from balsam_core.schema.types import UTCDateTime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection, CursorResult, Dialect, Executable
    from sqlalchemy.engine.interfaces import DBAPICursor

__all__ = ["Prepared", "RawResult"]


class Prepared:
    """A statement without lists of variable length; its rows come as the driver gives them.

    So it is for results that need no conversion: numbers, texts and bytes.

    Args:
        statement: The statement. An INSERT that leaves out a key that the database gives must be ``inline()``.
        columns: For an INSERT, the columns to be given; else None.
    """

    def __init__(self, statement: Executable, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}

    def run(self, conn: Connection, parameters: Any = None) -> CursorResult[*tuple[Any, ...]]:  # noqa: ANN401
        """Run it with a mapping of parameters, or with a list of them: then once for each."""
        dialect = conn.dialect
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, self._columns, dialect)
        if type(parameters) is list:
            return conn.exec_driver_sql(compiled.text, [compiled.bind(one) for one in parameters])
        return conn.exec_driver_sql(compiled.text, compiled.bind(parameters or {}))

    def run_raw(self, cursor: DBAPICursor, dialect: Dialect, parameters: Any = None) -> RawResult:  # noqa: ANN401
        """Run it on a driver's cursor, in 2 us; for an engine inside the process, which has no connection to lose.

        Raises:
            sqlalchemy.exc.DBAPIError: As from :meth:`run`.
        """
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, self._columns, dialect)
        try:
            if type(parameters) is list and len(parameters) != 1:
                cursor.executemany(compiled.text, [compiled.bind(one) for one in parameters])
            else:
                one = parameters[0] if type(parameters) is list else parameters or {}
                cursor.execute(compiled.text, compiled.bind(one))
        except Exception as err:
            from sqlalchemy.exc import DBAPIError

            raise DBAPIError.instance(compiled.text, None, err, dialect.loaded_dbapi.Error) from err
        return RawResult(cursor)


class RawResult:
    """The little of SQLAlchemy's result that prepared statements need."""

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
