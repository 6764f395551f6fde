"""A database that was made by the first schema is brought to today's, whatever is killed on the way."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from balsam_program import child
from db_servers import KINDS, skip_kind
from killed_upgrade import KilledUpgrades
from plugin_dbs import make_db_without_tables

from balsam_core import Job, State, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.dbdir import address
from balsam_core.errors import BackendError, SchemaMismatch
from balsam_core.model.calls import GetHistory
from balsam_core.schema import migrate, tables
from balsam_core.schema.types import JSONDocument
from balsam_core.schema.version import SCHEMA, VERSION_TABLE, current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Column, Connection, Engine

    from balsam_core.dbdir.directory import DBDir

SCRIPTS = ScriptDirectory(str(migrate.SCRIPTS))
FIRST = SCRIPTS.get_revision("0001").module.metadata
LATER = [script.module for script in SCRIPTS.walk_revisions() if script.revision != "0001"][::-1]
START = datetime.now(UTC)  # what is older is removed
Rows = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, database_url: Callable[[str], str], tmp_path: Path) -> DBDir:
    return make_db_without_tables(tmp_path / "db", request.param, database_url(request.param))


@pytest.fixture
def engine(db: DBDir) -> Iterator[Engine]:
    """The plugin's engine on a database without tables."""
    made = registry.load(db.db_type).create_engine(db, "owner")
    yield made
    made.dispose()


def remove_tables(engine: Engine) -> None:
    found = sa.MetaData()
    with engine.begin() as conn:
        found.reflect(conn)
        found.drop_all(conn)


def make_first_schema(engine: Engine, db_id: str) -> Rows:
    """Make and fill the tables of the first schema; returns all rows."""
    with engine.begin() as conn:
        FIRST.create_all(conn)
        MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE}).stamp(SCRIPTS, "0001")
        for table in FIRST.sorted_tables:
            conn.execute(table.insert(), first_rows(table, db_id))
        return read_rows(conn, FIRST, {})


def first_rows(table: sa.Table, db_id: str) -> list[dict[str, Any]]:
    """Return rows of every kind: jobs in all states, and something in each column, NULL where it may be."""
    if table.name == "meta":
        return [{"name": "db_id", "value": db_id}, {"name": "epoch", "value": "7"}]
    if table.name == "counters":
        counted = ["apps", "batches", "jobs", "launchers", "resource_classes", "workflows"]
        return [{"name": name, "last": 100 + number} for number, name in enumerate(counted)]
    states = list(State)
    rows = []
    for number in range(1, len(states) + 1):
        row = {column.name: value_of(column, number) for column in table.columns}
        if table.name == "jobs":
            row |= {"state": states[number - 1].value, "batch_id": number % 3}
        if table.name == "job_events":
            row["hops"] = f"CREATED 0.5, {states[number - 1]} 0"
            del row["id"]  # the database gives it
        if table.name == "resource_classes":
            shape = [row[column.name] for column in table.columns if column.name not in {"id", "shape"}]
            row["shape"] = ",".join(f"{part:g}" for part in shape)
        if table.name == "batches":  # open, published, robbed
            row |= {"published": number == 2, "robbed": number == 3}
        rows.append(row)
    return rows


def value_of(column: Column[Any], number: int) -> Any:
    if column.nullable and number % 3 == 0:
        return None
    kind = column.type
    if isinstance(kind, JSONDocument):
        documents = {"environ": {"ü": "v"}, "input_files": ["*.x"], "stage_out_files": []}
        return documents.get(column.name, {"ü": [number, 0.5, None]})
    python_type = getattr(kind, "impl", kind).python_type
    if python_type is str:
        return f"{column.name} {number} ü "
    if python_type is datetime:
        return START + timedelta(minutes=number)
    values = {int: number, float: number + 0.25, bool: number % 2 == 0, bytes: bytes([number, 0, 255])}
    return values[python_type]


def read_rows(conn: Connection, metadata: sa.MetaData, renamed: dict[str, str]) -> Rows:
    """Return the rows of the first schema's tables and columns, by the tables' first names.

    Args:
        conn: A connection.
        metadata: The tables as they are named.
        renamed: The names of tables ("batches") and columns ("jobs.batch_id") that have others than at first.
    """
    rows: Rows = {}
    for first in FIRST.sorted_tables:
        table = metadata.tables[renamed.get(first.name, first.name)]
        columns = [table.c[renamed.get(f"{first.name}.{name}", name)] for name in first.columns.keys()]  # noqa: SIM118
        found = [tuple(row) for row in conn.execute(sa.select(*columns).order_by(*table.primary_key))]
        if first.name == "counters":
            found = sorted((renamed.get(name, name), last) for name, last in found)
        rows[first.name] = found
    return rows


def renamed_since() -> dict[str, str]:
    names: dict[str, str] = {}
    for revision in LATER:
        names |= getattr(revision, "RENAMED_TABLES", {})
    first_names = {new: old for old, new in names.items()}
    for revision in LATER:
        for table, columns in getattr(revision, "RENAMED_COLUMNS", {}).items():
            names |= {f"{first_names.get(table, table)}.{old}": new for old, new in columns.items()}
    return names


def check_rows(engine: Engine, before: Rows) -> None:
    """All rows are there under the names of today."""
    names = renamed_since()
    counters = sorted((names.get(name, name), last) for name, last in before["counters"])
    with engine.connect() as conn, conn.begin():
        assert current(conn) == SCHEMA
        classes = [unlimited(row) for row in before["resource_classes"]]
        assert read_rows(conn, tables.metadata, names) == before | {"counters": counters, "resource_classes": classes}


def unlimited(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a resource class as revision 0003 leaves it: the packing count 1, which limited nothing, is 0 now."""
    job_class, shape, *needs, packing, minutes = row
    if packing != 1:
        return row
    *first, _, last = shape.split(",")
    return (job_class, ",".join([*first, "0", last]), *needs, 0, minutes)


def check_tables(engine: Engine) -> None:
    """The tables and indexes are those of today."""
    with engine.connect() as conn, conn.begin():
        context = MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
        for table in tables.metadata.sorted_tables:
            declared = {(str(index.name), tuple(column.name for column in index.columns)) for index in table.indexes}
            indexes = sa.inspect(conn).get_indexes(table.name)
            # The database adds some for foreign keys and unique columns.
            assert declared <= {(index["name"], tuple(index["column_names"])) for index in indexes}, table.name


def test_every_row_is_there_under_the_new_names(db: DBDir, engine: Engine) -> None:
    before = make_first_schema(engine, db.id)
    assert migrate.pending(engine) == [module.revision for module in LATER]
    migrate.upgrade(engine, db_id=db.id, new=False)
    assert migrate.pending(engine) == []
    check_rows(engine, before)
    check_tables(engine)


def test_killed_before_any_statement_it_is_completed_by_the_next_run(db: DBDir, engine: Engine) -> None:
    before = make_first_schema(engine, db.id)
    names = table_names(engine)
    with KilledUpgrades(db) as upgrades:
        for number in count(1):
            if not upgrades.kill_before(number):
                break
            if engine.dialect.name != "mysql" and table_names(engine) == names:
                with engine.connect() as conn, conn.begin():
                    assert read_rows(conn, FIRST, {}) == before  # all was rolled back, so the next run is as the first
                continue
            migrate.upgrade(engine, db_id=db.id, new=False)
            check_rows(engine, before)
            remove_tables(engine)
            make_first_schema(engine, db.id)
    check_rows(engine, before)
    check_tables(engine)
    assert number > len(renamed_since()), "fewer kills than statements"


def test_the_first_making_of_tables_killed_before_any_statement_is_completed(db: DBDir, engine: Engine) -> None:
    """Each run is killed one statement later; where statements last (MariaDB), it continues what the last one left."""
    made, kills, number = tables_and_indexes(engine), 0, 1
    with KilledUpgrades(db) as upgrades:
        while upgrades.kill_before(number):
            left, kills = tables_and_indexes(engine), kills + 1
            made, number = left, number + 1 if left == made else 2
    check_tables(engine)
    assert kills > len(made), "fewer kills than statements"


def tables_and_indexes(engine: Engine) -> set[tuple[str, object]]:
    with engine.connect() as conn:
        inspector = sa.inspect(conn)
        names = inspector.get_table_names()
        return {(name, index["name"]) for name in names for index in [{"name": ""}, *inspector.get_indexes(name)]}


def table_names(engine: Engine) -> set[str]:
    with engine.connect() as conn:
        return set(sa.inspect(conn).get_table_names())


# ---- with a server, as users do it


@pytest.mark.parametrize("kind", KINDS)
def test_a_served_db_is_refreshed_and_served_again(kind: str, tmp_path: Path) -> None:
    try:
        db = initialise(tmp_path / "db", kind).db
    except BackendError as err:
        skip_kind(kind, err)
    child.good("dbserver", db=db.path)
    try:
        with owner_engine(db) as engine:
            remove_tables(engine)
            before = make_first_schema(engine, db.id)
        server = address.read(db)
        with pytest.raises(SchemaMismatch, match="has schema 0001"), open_db(db.path) as old:
            old.jobs.count()
        assert child.good("init", db.path).out.startswith("brought up to date: ")
        refreshed = address.read(db)
        assert server is not None
        assert refreshed is not None
        assert refreshed.generation > server.generation
        with open_db(db.path) as new:
            seen = {job.id: job.state for job in new.jobs}
            # Those of the insert that is still open are not seen.
            expected = {number: state for number, state in enumerate(State, 1) if number % 3 != 1}
            assert seen == expected
            assert len(new.run(GetHistory(jobs=[*seen]))) == len(expected)
            (last,) = [last for name, last in before["counters"] if name == "jobs"]
            again = [Job(command="true"), Job(command="true", key="key 2 ü ")]
            assert new.jobs.add(again, if_exists="keep") == [last + 1, 2]
        with owner_engine(db) as engine:
            check_tables(engine)
    finally:
        child.good("dbserver", "--stop", db=db.path)


@contextlib.contextmanager
def owner_engine(db: DBDir) -> Iterator[Engine]:
    if db.db_type == "sqlite":  # its plugin doesn't touch the file of a server
        engine = sa.create_engine(f"sqlite:///{db.path}/db.sqlite3")
    else:
        engine = registry.load(db.db_type).create_engine(db, "owner")
    yield engine
    engine.dispose()
