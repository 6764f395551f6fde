"""Column types and expressions that mean the same on SQLite, PostgreSQL, MySQL and MariaDB.

The dialects are imported where they are used: the two that aren't cost every command 50 ms.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, BigInteger, DateTime, Integer, LargeBinary, String, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.types import TypeEngine

__all__ = ["TABLE_OPTIONS", "Blob", "Document", "Id", "LongText", "UTCDateTime", "Words", "position", "utc_now"]

MYSQL = ("mysql", "mariadb")
TABLE_OPTIONS = {"mysql": " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"}
"""What metadata adds to its CREATE TABLE statements, by dialect; as keywords of a table they would load the dialect."""

_COLLATION = {"postgresql": "C", "mysql": "utf8mb4_bin", "mariadb": "utf8mb4_bin"}
"""Collations that compare byte by byte, as SQLite does by itself."""


def Words(length: int) -> String:  # noqa: N802  (reads as a type)
    """Return a string type of at most ``length`` characters that compares byte by byte."""
    kind = String(length)
    for dialect, collation in _COLLATION.items():
        kind = kind.with_variant(String(length, collation=collation), dialect)
    return kind


class LongText(TypeDecorator[str]):
    """A text type for up to 16 MiB that compares byte by byte."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type."""
        collation = _COLLATION.get(dialect.name)
        if dialect.name in MYSQL:
            from sqlalchemy.dialects import mysql

            return dialect.type_descriptor(mysql.MEDIUMTEXT(charset="utf8mb4", collation=collation))
        return dialect.type_descriptor(Text(collation=collation))


class Document(TypeDecorator[Any]):
    """A JSON type; SQL NULL stands for the empty document."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type."""
        if dialect.name == "postgresql":
            from sqlalchemy.dialects import postgresql

            return dialect.type_descriptor(postgresql.JSONB(none_as_null=True))
        return dialect.type_descriptor(JSON(none_as_null=True))


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


def Id() -> BigInteger:  # noqa: N802
    """Return the type of a 64-bit primary key; on SQLite it is the row id itself."""
    return BigInteger().with_variant(Integer(), "sqlite")


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

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give an aware datetime."""
        if value is None:
            return None
        return value.astimezone(UTC) if dialect.name == "postgresql" else value.replace(tzinfo=UTC)


class utc_now(FunctionElement[datetime]):  # noqa: N801  (reads as an SQL function)
    """The database's clock, in UTC, at the moment of the statement."""

    inherit_cache = True
    type = UTCDateTime()


@compiles(utc_now)
def _utc_now(element: utc_now, compiler: Any, **kw: Any) -> str:  # noqa: ANN401, ARG001
    return "CURRENT_TIMESTAMP"


@compiles(utc_now, "postgresql")
def _utc_now_postgresql(element: utc_now, compiler: Any, **kw: Any) -> str:  # noqa: ANN401, ARG001
    return "clock_timestamp()"


@compiles(utc_now, "mysql")
@compiles(utc_now, "mariadb")
def _utc_now_mysql(element: utc_now, compiler: Any, **kw: Any) -> str:  # noqa: ANN401, ARG001
    return "UTC_TIMESTAMP(6)"


@compiles(utc_now, "sqlite")
def _utc_now_sqlite(element: utc_now, compiler: Any, **kw: Any) -> str:  # noqa: ANN401, ARG001
    return "strftime('%Y-%m-%d %H:%M:%f', 'now')"


class position(FunctionElement[int]):  # noqa: N801  (reads as an SQL function)
    """The place of a text in another, from 1; 0 where it isn't there. Compares byte by byte."""

    inherit_cache = True
    name = "position"
    type = Integer()


@compiles(position)
def _position(element: position, compiler: Any, **kw: Any) -> str:  # noqa: ANN401
    text, part = element.clauses
    return f"instr({compiler.process(text, **kw)}, {compiler.process(part, **kw)})"


@compiles(position, "postgresql")
def _position_postgresql(element: position, compiler: Any, **kw: Any) -> str:  # noqa: ANN401
    text, part = element.clauses
    return f"strpos({compiler.process(text, **kw)}, {compiler.process(part, **kw)})"
