"""``balsam_create_engine``: its roles, snapshots, and the tables that the migrations make."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from balsam_core.errors import BalsamError, Busy, Conflict, SchemaMismatch, Unavailable
from balsam_core.model import calls
from balsam_core.model.job import Job
from balsam_core.schema import SCHEMA, migrate, tables
from balsam_core.schema.version import VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy import Engine

    from balsam_core import Database
    from balsam_core.plugin_types import EngineRole
    from balsam_core.testing.fixtures import SuiteDB

    MakeEngine = Callable[[EngineRole], Engine]
    Owner = Callable[[], AbstractContextManager[Engine]]

HELD = 3.0  # seconds
COUNT = sa.select(sa.func.count()).select_from(tables.jobs)


def test_a_reader_cannot_write(db: Database, engine: MakeEngine) -> None:
    db.jobs.add(Job(command="x"))
    reader = engine("reader")
    with pytest.raises((DBAPIError, BalsamError)), reader.begin() as conn:
        conn.execute(tables.jobs.delete())
    with pytest.raises((DBAPIError, BalsamError)), reader.begin() as conn:
        conn.execute(sa.text("CREATE TABLE no_such_thing (x INTEGER)"))
    with reader.begin() as conn:
        assert conn.execute(COUNT).scalar_one() == 1


@pytest.mark.parametrize("role", ["reader", "writer"])
def test_a_reading_transaction_sees_one_state(db: Database, engine: MakeEngine, role: EngineRole) -> None:
    if role == "writer" and db.directory.address_file.exists():
        engine(role)  # skips where only the server may write
    with engine(role).connect() as plain, plain.execution_options(balsam_reads=True) as conn:
        with conn.begin():
            assert conn.execute(COUNT).scalar_one() == 0
            try:
                db.run(calls.AddJobs(jobs=[Job(command="x")]), timeout=3)
            except Busy:
                pytest.skip("a reading transaction keeps writers waiting")
            assert conn.execute(COUNT).scalar_one() == 0, "another's commit is seen in the middle"
        with conn.begin():
            assert conn.execute(COUNT).scalar_one() == 1


@pytest.mark.once
def test_a_writer_commits_or_leaves_nothing(db: Database, engine: MakeEngine) -> None:
    db.jobs.add(Job(command="x"))
    writer = engine("writer")
    with writer.connect() as conn, conn.begin() as transaction:
        conn.execute(tables.jobs.update().values(priority=5))
        transaction.rollback()
    assert [row[0] for row in db.jobs.rows("priority")] == [0]
    with writer.begin() as conn:
        conn.execute(tables.jobs.update().values(priority=5))
    assert [row[0] for row in db.jobs.rows("priority")] == [5]


@pytest.mark.once
def test_a_write_waits_for_a_lock_that_another_holds_for_seconds(db: Database, engine: MakeEngine) -> None:
    """Longer than the engine itself waits for a lock: the deadline of the call decides."""
    db.jobs.add(Job(command="x"))
    answers: list[object] = []
    adding = threading.Thread(target=lambda: answers.append(_add(db)), daemon=True)
    count = sa.select(tables.counters.c.last).where(tables.counters.c.name == "jobs").with_for_update()
    with engine("owner").begin() as conn:
        conn.execute(count)
        adding.start()
        adding.join(HELD)  # ends earlier where nobody else is kept waiting
    adding.join(60)
    assert not adding.is_alive(), "it still waits for a lock that is free"
    assert answers == [1]
    assert db.jobs.count() == 2


def _add(db: Database) -> object:
    try:
        return len(db.jobs.add(Job(command="x")))
    except BalsamError as err:
        return err


@pytest.mark.once
def test_an_owner_may_change_tables(owner: Owner) -> None:
    scratch = sa.Table("conformance_scratch", sa.MetaData(), sa.Column("x", sa.Integer))
    with owner() as made:
        scratch.create(made)
        try:
            assert sa.inspect(made).has_table("conformance_scratch")
        finally:
            scratch.drop(made)


@pytest.mark.once
def test_migrations_make_the_declared_tables(owner: Owner) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with owner() as made:
        assert migrate.pending(made) == []
        with made.connect() as conn:
            context = MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE, "compare_type": True})
            assert compare_metadata(context, tables.metadata) == []
            indexes = {index["name"] for index in sa.inspect(conn).get_indexes("jobs")}
    assert {"ix_jobs_claim", "ix_jobs_workflow_claim", "ix_jobs_state_id", "ix_jobs_workflow_id_id"} <= indexes


@pytest.mark.once
def test_the_database_belongs_to_its_directory(suite_db: SuiteDB, owner: Owner) -> None:
    with owner() as made:
        migrate.upgrade(made, db_id=suite_db.directory.id)
        with pytest.raises(Conflict, match="another DB directory"):
            migrate.upgrade(made, db_id="b" * 32)


@pytest.mark.once
def test_a_newer_schema_is_refused_and_left_alone(suite_db: SuiteDB, owner: Owner) -> None:
    def become(made: Engine, version: str) -> None:
        with made.begin() as conn:
            conn.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '{version}'"))  # noqa: S608  (ours)

    def use_a_newer_one() -> None:
        with owner() as made:
            become(made, "9999")
            with pytest.raises(SchemaMismatch, match="newer"):
                migrate.upgrade(made, db_id=suite_db.directory.id)
        with suite_db.open() as other:
            other.info()

    try:
        # Unavailable: a server that had to be stopped doesn't start again.
        with pytest.raises((SchemaMismatch, Unavailable), match="newer"):
            use_a_newer_one()
    finally:
        with owner() as made:
            become(made, SCHEMA)
    with suite_db.open() as other:
        other.info()
