"""An SQLAlchemy dialect for DuckDB, as far as Balsam needs one: PostgreSQL's SQL, DuckDB's catalogue."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from alembic.ddl.impl import DefaultImpl
from sqlalchemy.dialects.postgresql.base import PGCompiler
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.sql.compiler import DDLCompiler, GenericTypeCompiler, IdentifierPreparer
from sqlalchemy.types import NullType

from balsam_duckdb import driver

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Impl(DefaultImpl):
    """Alembic needs an implementation for each dialect."""

    __dialect__ = "duckdb"


class Compiler(PGCompiler):
    """Statements."""

    def for_update_clause(self, select: Any, **kw: Any) -> str:
        """Leave the clause out: there is one writer."""
        return ""


class TableCompiler(DDLCompiler):
    """Tables, with a sequence for a key that counts up."""

    def visit_create_table(self, create: Any, **kw: Any) -> str:
        """Make the sequence, too."""
        text: str = super().visit_create_table(create, **kw)  # type: ignore[no-untyped-call]
        counting = create.element._autoincrement_column is not None
        return f"CREATE SEQUENCE {create.element.name}_seq;{text}" if counting else text

    def get_column_specification(self, column: Any, **kw: Any) -> str:
        """Take the key from the sequence."""
        text = super().get_column_specification(column, **kw)
        counting = column is column.table._autoincrement_column
        return f"{text} DEFAULT nextval('{column.table.name}_seq')" if counting else text


class TypeCompiler(GenericTypeCompiler):
    """Types."""

    def visit_JSON(self, type_: Any, **kw: Any) -> str:  # noqa: N802
        """Return the name: no generic one."""
        return "JSON"


class Quoting(IdentifierPreparer):
    """All names in quotes, since more words are reserved than anywhere else."""

    def _requires_quotes(self, value: str) -> bool:
        return True


class DuckDBDialect(DefaultDialect):
    """DuckDB."""

    name = "duckdb"
    driver = "balsam"
    supports_statement_cache = True
    supports_native_boolean = True
    supports_sane_multi_rowcount = False
    use_insertmanyvalues = True
    _backslash_escapes = False
    insert_returning = True
    delete_returning = True
    # DuckDB takes no subqueries in RETURNING.
    update_returning = False
    update_returning_multifrom = False
    statement_compiler = Compiler
    ddl_compiler = TableCompiler
    type_compiler_cls = TypeCompiler
    preparer = Quoting
    default_paramstyle = "numeric_dollar"

    def initialize(self, connection: Connection) -> None:
        """Ask nothing."""
        self.default_isolation_level = "SERIALIZABLE"

    @classmethod
    def import_dbapi(cls) -> Any:
        """Return the driver."""
        return driver

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin nothing: the engine does, in its event."""

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        """Take AUTOCOMMIT, for which the write server asks, and which is so anyway."""

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        """Return the only one."""
        return "SERIALIZABLE"

    def get_isolation_level_values(self, dbapi_conn: Any) -> Any:
        """Return what may be asked for."""
        return ["SERIALIZABLE", "AUTOCOMMIT"]

    def get_table_names(self, connection: Connection, schema: str | None = None, **kw: Any) -> list[str]:
        """Return the tables."""
        return list(connection.exec_driver_sql("SELECT table_name FROM duckdb_tables()").scalars())

    def has_table(self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any) -> bool:
        """Say whether there is such a table."""
        return table_name in self.get_table_names(connection, schema, **kw)

    def get_columns(self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any) -> Any:
        """Return the columns, with the types of their names only."""
        found = connection.exec_driver_sql(
            "SELECT column_name, is_nullable FROM duckdb_columns() WHERE table_name = $1 ORDER BY column_index",
            (table_name,),
        )
        return [{"name": name, "type": NullType(), "nullable": nullable, "default": None} for name, nullable in found]

    def get_indexes(self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any) -> Any:
        """Return the indexes."""
        found = connection.exec_driver_sql(
            "SELECT index_name, is_unique, sql FROM duckdb_indexes() WHERE table_name = $1", (table_name,)
        )
        return [
            {"name": name, "unique": unique, "column_names": re.findall(r"\w+", sql.rpartition("(")[2])}
            for name, unique, sql in found
        ]

    def get_pk_constraint(self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any) -> Any:
        """Return none: nobody asks."""
        return {"constrained_columns": [], "name": None}

    def get_unique_constraints(
        self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any
    ) -> Any:
        """Return the keys that are no primary ones, with names as Balsam makes them: DuckDB forgets names."""
        found = connection.exec_driver_sql(
            "SELECT constraint_column_names FROM duckdb_constraints() "
            "WHERE constraint_type = 'UNIQUE' AND table_name = $1",
            (table_name,),
        )
        return [{"name": f"uq_{table_name}_{'_'.join(columns)}", "column_names": columns} for (columns,) in found]

    def get_foreign_keys(self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any) -> Any:
        """Return the foreign keys."""
        found = connection.exec_driver_sql(
            "SELECT constraint_column_names, referenced_table, referenced_column_names FROM duckdb_constraints() "
            "WHERE constraint_type = 'FOREIGN KEY' AND table_name = $1",
            (table_name,),
        )
        return [
            {
                "name": f"fk_{table_name}_{'_'.join(columns)}",
                "constrained_columns": columns,
                "referred_schema": None,
                "referred_table": table,
                "referred_columns": referred,
                "options": {},
            }
            for columns, table, referred in found
        ]


def alter(cursor: Any, statement: str) -> bool:
    """Carry out a change of a table; say whether the statement was one.

    DuckDB changes no table that has indexes, and adds no column that may not be NULL.
    """
    found = re.fullmatch(r'ALTER TABLE "?(\w+)"? (RENAME (?:COLUMN "?(\w+)"? )?TO "?(\w+)"?|ADD COLUMN .*)', statement)
    if found is None:
        return False
    table, _, column, new = found.groups()
    cursor.execute("SELECT index_name, sql FROM duckdb_indexes() WHERE table_name = $1", (table,))
    indexes = cursor.fetchall()
    for name, _ in indexes:
        cursor.execute(f'DROP INDEX "{name}"')
    cursor.execute(statement.removesuffix(" NOT NULL"))
    if added := re.search(r'ADD COLUMN "?(\w+)"? .* NOT NULL$', statement):
        cursor.execute(f'ALTER TABLE "{table}" ALTER COLUMN "{added[1]}" SET NOT NULL')
    for _, text in indexes:
        head, place, columns = text.partition(" ON ")
        old = column or table
        cursor.execute(
            head + place + (re.sub(rf"\b{old}\b", new, columns, count=0 if column else 1) if new else columns)
        )
    return True
