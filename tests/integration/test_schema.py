"""The tables as the program declares them, and as the migrations make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from db_servers import KINDS
from plugin_dbs import make_db_without_tables

from balsam_core.backends import registry
from balsam_core.errors import Conflict, SchemaMismatch
from balsam_core.schema import migrate, tables
from balsam_core.schema.version import SCHEMA, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from balsam_core.dbdir.directory import DBDir


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, database_url: Callable[[str], str], tmp_path: Path) -> Iterator[Engine]:
    """The plugin's engine for its owner, on a database without tables."""
    kind = request.param
    made = registry.load(kind).create_engine(make_db_without_tables(tmp_path / "db", kind, database_url(kind)), "owner")
    yield made
    made.dispose()


def test_the_newest_migration_is_the_schema_of_this_program() -> None:
    heads = ScriptDirectory(str(migrate.SCRIPTS)).get_heads()
    assert heads == [SCHEMA], f"down_revision in schema/migrations/versions must name the migration before it: {heads}"


def test_migrations_make_the_declared_tables(engine: Engine) -> None:
    assert migrate.pending(engine)[-1] == SCHEMA
    migrate.upgrade(engine, db_id="a" * 32)
    assert migrate.pending(engine) == []
    with engine.connect() as conn:
        context = MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE, "compare_type": True})
        different = compare_metadata(context, tables.metadata)
        assert not different, f"schema/migrations/versions makes other tables than schema/tables.py: {different}"
        indexes = {index["name"] for index in sa.inspect(conn).get_indexes("jobs")}
    assert {"ix_jobs_claim", "ix_jobs_workflow_claim", "ix_jobs_state_id", "ix_jobs_workflow_id_id"} <= indexes


def test_upgrading_twice_changes_nothing_and_a_foreign_directory_is_refused(engine: Engine) -> None:
    migrate.upgrade(engine, db_id="a" * 32)
    migrate.upgrade(engine, db_id="a" * 32)
    with pytest.raises(Conflict, match="another DB directory"):
        migrate.upgrade(engine, db_id="b" * 32)


def test_a_newer_schema_is_left_alone(engine: Engine) -> None:
    migrate.upgrade(engine, db_id="a" * 32)
    with engine.begin() as conn:
        conn.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="newer"):
        migrate.upgrade(engine, db_id="a" * 32)


def test_a_migration_that_was_killed_half_way_is_completed(engine: Engine) -> None:
    """Where DDL commits by itself, as on MySQL, a kill can leave some tables and no version."""
    with engine.begin() as conn:
        tables.meta.create(conn)
        tables.workflows.create(conn)
    migrate.upgrade(engine, db_id="a" * 32)
    with engine.connect() as conn:
        assert sa.inspect(conn).has_table("jobs")


@pytest.mark.parametrize(
    "table", ["inventory (id INTEGER)", "jobs (id INTEGER, title INTEGER)", "apps (id INTEGER)", "applied (at INTEGER)"]
)
def test_tables_of_another_program_are_left_alone(engine: Engine, table: str) -> None:
    with engine.begin() as conn:
        conn.execute(sa.text(f"CREATE TABLE {table}"))
    with pytest.raises(Conflict, match=f"holds the table '{table.split(maxsplit=1)[0]}': ask for an empty one"):
        migrate.upgrade(engine, db_id="a" * 32)
    with engine.connect() as conn:
        assert sa.inspect(conn).get_table_names() == [table.split(maxsplit=1)[0]]


def test_the_claim_index_serves_filter_and_order(make_db: Callable[[str], DBDir]) -> None:
    """On SQLite, which plans by rules alone; the plans of the others depend on how full the tables are."""
    engine = registry.load("sqlite").create_engine(make_db("sqlite"), "reader")
    query = "EXPLAIN QUERY PLAN SELECT id FROM jobs WHERE claim_class = 1 ORDER BY priority DESC, id LIMIT 9"
    with engine.connect() as conn, conn.begin():
        plan = " ".join(row[3] for row in conn.execute(sa.text(query)))
    assert "ix_jobs_claim" in plan
    assert "TEMP B-TREE" not in plan
    engine.dispose()
