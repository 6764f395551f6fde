"""Bring a database to this program's schema. Imports Alembic, which takes 0.3 s: only ``init`` does this."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import exists, inspect, select, update

from balsam_core.errors import Conflict, Corrupt
from balsam_core.schema import SCHEMA
from balsam_core.schema.alembic_alone import MigrationContext, MigrationStep, Operations, ScriptDirectory
from balsam_core.schema.tables import apps, counters, jobs, launchers, meta, metadata
from balsam_core.schema.version import VERSION_TABLE, check

if TYPE_CHECKING:
    from alembic.script import Script
    from sqlalchemy import Connection, Engine

logger = logging.getLogger(__name__)

SCRIPTS = Path(__file__).with_name("migrations")


def pending(engine: Engine) -> list[str]:
    """Return the revisions that :func:`upgrade` would apply, oldest first.

    Raises:
        SchemaMismatch: The database is newer than this program.
    """
    with engine.connect() as conn, conn.begin():
        found = MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE}).get_current_revision()
        if found is not None and found > SCHEMA:
            check(conn)
    return [script.revision for script in _scripts_after(found or "base")]


def _scripts_after(revision: str | tuple[str, ...]) -> list[Script]:
    """Return the migrations that follow a revision, oldest first."""
    newest_first = ScriptDirectory(str(SCRIPTS)).iterate_revisions("head", revision, implicit_base=True)
    return list(newest_first)[::-1]


def upgrade(engine: Engine, *, db_id: str, new: bool = True, take_over: bool = False) -> bool:
    """Create or migrate all tables; return whether that was needed.

    Args:
        engine: Connects as the owner of the tables.
        db_id: The DB directory's id. A database belongs to one directory.
        new: Whether the tables may be missing, since the DB directory is being made.
        take_over: Whether a database that belongs to another directory becomes this one's, if it was never used: an
            ``init`` that was killed leaves one.

    Raises:
        SchemaMismatch: The database is newer than this program.
        Conflict: The database belongs to another DB directory, or holds something else.
        Corrupt: The tables are missing.
    """
    todo = pending(engine)
    with engine.connect() as conn:
        with conn.begin():
            owner = _owner(conn) if inspect(conn).has_table(meta.name) else None
            if owner is None and not new:
                raise Corrupt("the database holds none of this DB's tables: it is another one, or was emptied")
            if owner is None and (foreign := _foreign_table(conn)):
                raise Conflict(f"the database is not empty, it holds the table {foreign!a}: ask for an empty one")
            if owner is not None and owner != db_id and not (take_over and not todo and _take_over(conn, owner, db_id)):
                raise Conflict(
                    f"the database belongs to another DB directory (id {owner}, not {db_id}): use that one, restore it "
                    f"from a backup, or ask for an empty database"
                )
        if todo:
            _run_migrations(conn)
    with engine.connect() as conn, conn.begin():
        if _owner(conn) is None:
            conn.execute(meta.insert(), [{"name": "db_id", "value": db_id}, {"name": "epoch", "value": "0"}])
    return bool(todo)


def _owner(conn: Connection) -> str | None:
    """Return the id of the DB directory that the database belongs to, None where it has none yet."""
    owner: str | None = conn.execute(select(meta.c.value).where(meta.c.name == "db_id")).scalar()
    return owner


def _run_migrations(conn: Connection) -> None:
    def steps(heads: tuple[str, ...], context: MigrationContext) -> list[MigrationStep]:  # noqa: ARG001
        revisions = ScriptDirectory(str(SCRIPTS)).revision_map
        return [MigrationStep.upgrade_from_script(revisions, script) for script in _scripts_after(heads)]

    context = MigrationContext.configure(
        conn,
        opts={
            "version_table": VERSION_TABLE,
            "transaction_per_migration": True,
            "transactional_ddl": conn.dialect.name != "mysql",
            "fn": steps,
        },
    )
    with Operations.context(context):
        context.run_migrations()


def _foreign_table(conn: Connection) -> str | None:
    """Return the name of a table that no migration, not even one that was killed half way, has made.

    Another program's table may have the name of one of ours; ours has no column but those of today or their earlier
    names, and at least as many as its first revision gave it.
    """
    revisions = [script.module for script in _scripts_after("base")]
    current_names: dict[str, str] = {}
    columns_of = {name: set(table.columns.keys()) for name, table in metadata.tables.items()}
    for revision in revisions:
        current_names |= getattr(revision, "RENAMED_TABLES", {})
        for table, names in getattr(revision, "RENAMED_COLUMNS", {}).items():
            columns_of[table] |= names.keys()
    fewest = {current_names.get(name, name): len(table.columns) for name, table in revisions[0].metadata.tables.items()}
    found = inspect(conn)
    for table in sorted(set(found.get_table_names()) - {VERSION_TABLE}):
        name = current_names.get(table, table)
        columns = {column["name"] for column in found.get_columns(table)}
        if not columns <= columns_of.get(name, set()) or len(columns) < fewest.get(name, 1):
            return table
    return None


def _take_over(conn: Connection, owner: str, db_id: str) -> bool:
    """Give a database that was never used another owner; of many who want that, one gets it."""
    is_owner = (meta.c.name == "db_id", meta.c.value == owner)
    conn.execute(select(meta.c.value).where(*is_owner).with_for_update())
    used = [exists().select_from(table) for table in (jobs, apps, launchers)]
    used.append(exists().where(counters.c.last > 0))
    if any(conn.execute(select(one)).scalar() for one in used):
        return False
    if conn.execute(update(meta).where(*is_owner).values(value=db_id)).rowcount != 1:
        return False
    logger.warning("the database was made for another DB directory (id %s) and never used: it is this one's now", owner)
    return True
