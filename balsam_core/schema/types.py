"""Column types and expressions that mean the same on SQLite, PostgreSQL, MySQL and MariaDB.

The dialects are imported where they are used: the two that aren't cost every command 50 ms.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import DDL, JSON, BigInteger, DateTime, Double, Index, Integer, LargeBinary, String, Text, event
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator

from balsam_core.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Column, Dialect
    from sqlalchemy.types import TypeEngine

MYSQL = ("mysql", "mariadb")
TABLE_OPTIONS = {"mysql": " ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"}
"""What metadata adds to its CREATE TABLE statements, by dialect; as keywords of a table they would load the dialect."""


def _collation(dialect: Dialect) -> str | None:
    """Return the collation that compares byte by byte, spaces at the end included, as SQLite does by itself."""
    if dialect.name in MYSQL:
        return "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
    return "C" if dialect.name == "postgresql" else None


class ShortText(TypeDecorator[str]):
    """A string type of at most ``length`` characters that compares byte by byte."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type."""
        return dialect.type_descriptor(String(self.length, collation=_collation(dialect)))


class LongText(TypeDecorator[str]):
    """A text type for up to 16 MiB that compares byte by byte."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type."""
        collation = _collation(dialect)
        if dialect.name in MYSQL:
            from sqlalchemy.dialects import mysql

            return dialect.type_descriptor(mysql.MEDIUMTEXT(charset="utf8mb4", collation=collation))
        return dialect.type_descriptor(Text(collation=collation))


class JSONDocument(TypeDecorator[Any]):
    """A JSON type; SQL NULL stands for the empty document.

    On PostgreSQL JSON and not JSONB, which turns the number 1e22 into an integer, and takes longer to write.
    """

    impl = JSON(none_as_null=True)
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str | None]:  # noqa: ARG002
        """Give text to every driver: a tenth of the time that their own conversions take."""
        return _json_text

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        """Read the text, where the driver does not."""
        return super().result_processor(dialect, coltype) if dialect.name == "postgresql" else _json_value


def _json_text(value: Any) -> str | None:  # noqa: ANN401
    return None if value is None else _to_json(value).decode()


def _json_value(text: str | bytes | None) -> Any:  # noqa: ANN401
    try:
        return None if text is None else _from_json(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise Corrupt(f"the database holds a document that can't be read ({err})") from err


_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder().decode


class Blob(TypeDecorator[bytes]):
    """A type for up to 16 MiB of bytes."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type."""
        if dialect.name in MYSQL:
            from sqlalchemy.dialects import mysql

            return dialect.type_descriptor(mysql.MEDIUMBLOB())
        return dialect.type_descriptor(LargeBinary())


@compiles(CreateTable, *MYSQL)
def _create_table_mysql(element: CreateTable, compiler: Any, **kw: Any) -> str:  # noqa: ANN401
    text: str = compiler.visit_create_table(element, **kw)
    return text.rstrip() + str(element.element.metadata.info.get("mysql", ""))


def partial_index(name: str | None, *columns: Any, without: str, unique: bool = False) -> Index:  # noqa: ANN401
    """Return an index that leaves out the rows in which the column ``without`` is NULL, where the database can.

    Such rows cost nothing then when they are written. A keyword argument for a dialect would load the dialect.
    """
    return Index(name, *columns, unique=unique, info={"without": without})


@compiles(CreateIndex, "postgresql", "sqlite")
def _create_index(element: CreateIndex, compiler: Any, **kw: Any) -> str:  # noqa: ANN401
    text: str = compiler.visit_create_index(element, **kw)
    without = element.element.info.get("without")
    return f"{text} WHERE {compiler.preparer.quote(without)} IS NOT NULL" if without else text


def without_statistics(column: Column[Any]) -> None:
    """Keep PostgreSQL from planning by values that a column holds for a short time only.

    Statistics taken while many jobs wait to be published, with NULL in all of them, say that a claim will find nothing:
    until the next statistics, a minute later, claims would read and sort all jobs.
    """
    none: Any = DDL(f"ALTER TABLE {column.table.name} ALTER COLUMN {column.name} SET STATISTICS 0")  # type: ignore[no-untyped-call]
    event.listen(column.table, "after_create", none.execute_if(dialect="postgresql"))


def Id() -> BigInteger:  # noqa: N802
    """Return the type of a 64-bit primary key; on SQLite it is the row id itself."""
    return BigInteger().with_variant(Integer(), "sqlite")


class Number(TypeDecorator[float]):
    """A floating-point number of 64 bits, as every driver gives it by itself."""

    impl = Double
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        """Convert nothing."""


class UTCDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC with microseconds.

    SQLite and MySQL drop the time zone, and MySQL the microseconds unless told; so they are stored naive in UTC.
    """

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(DateTime(timezone=True))
        if dialect.name in MYSQL:
            from sqlalchemy.dialects import mysql

            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store in UTC."""
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any] | None:
        """Give SQLite the text that SQLAlchemy would make, in a tenth of the time."""
        return _utc_text if dialect.name == "sqlite" else super().bind_processor(dialect)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        """Give an aware datetime.

        Raises:
            Corrupt: The database holds something else.
        """
        read: Any = self.impl_instance.result_processor(dialect, coltype)
        zoned = dialect.name == "postgresql"

        def value_of(stored: Any) -> datetime | None:  # noqa: ANN401
            if stored is None:
                return None
            try:
                value: datetime = read(stored) if read else stored
                return value.astimezone(UTC) if zoned else value.replace(tzinfo=UTC)
            except (ValueError, TypeError, AttributeError) as err:
                raise Corrupt(f"the database holds a time that can't be read ({stored!r})") from err

        return value_of


def _utc_text(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat(" ", "microseconds")[:_UTC_OFFSET_AT]


_UTC_OFFSET_AT = len("2026-01-01 00:00:00.000000")


class utc_now(FunctionElement[datetime]):  # noqa: N801  (reads as an SQL function)
    """The database's clock, in UTC, at the moment of the statement."""

    inherit_cache = True
    type = UTCDateTime()


_UTC_NOW = {
    "postgresql": "clock_timestamp()",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now')",
    **dict.fromkeys(MYSQL, "UTC_TIMESTAMP(6)"),
}


@compiles(utc_now)
def _utc_now(element: utc_now, compiler: Any, **kw: Any) -> str:  # noqa: ANN401, ARG001
    return _UTC_NOW.get(compiler.dialect.name, "CURRENT_TIMESTAMP")


class position(FunctionElement[int]):  # noqa: N801  (reads as an SQL function)
    """The position of a text in another, from 1; 0 where it isn't there. Compares byte by byte."""

    inherit_cache = True
    name = "position"
    type = Integer()


@compiles(position)
def _position(element: position, compiler: Any, **kw: Any) -> str:  # noqa: ANN401
    text, part = element.clauses
    function = "strpos" if compiler.dialect.name == "postgresql" else "instr"
    return f"{function}({compiler.process(text, **kw)}, {compiler.process(part, **kw)})"
