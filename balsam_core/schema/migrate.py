"""Bring a database to this program's schema. Imports Alembic, which takes 0.3 s: only ``init`` does this."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect, select

from balsam_core.errors import Conflict, Corrupt
from balsam_core.schema.alembic_alone import MigrationContext, Operations, ScriptDirectory
from balsam_core.schema.tables import meta
from balsam_core.schema.version import SCHEMA, VERSION_TABLE, check

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["pending", "upgrade"]

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
    scripts = ScriptDirectory(str(SCRIPTS))
    return [script.revision for script in reversed(list(scripts.iterate_revisions("head", found or "base")))]


def upgrade(engine: Engine, *, db_id: str, new: bool = True) -> None:
    """Create or migrate all tables; does nothing where they are up to date.

    Args:
        engine: Connects as the owner of the tables.
        db_id: The DB directory's id. A database belongs to one directory.
        new: Whether the tables may be missing, since the DB directory is being made.

    Raises:
        SchemaMismatch: The database is newer than this program.
        Conflict: The database belongs to another DB directory.
        Corrupt: The tables are missing.
    """
    todo = pending(engine)
    with engine.connect() as conn:
        with conn.begin():
            owner = None
            if inspect(conn).has_table(meta.name):
                owner = conn.execute(select(meta.c.value).where(meta.c.name == "db_id")).scalar()
            if owner is None and not new:
                msg = "the database holds none of this DB's tables: it is another one, or was emptied"
                raise Corrupt(msg)
            if owner is not None and owner != db_id:
                msg = f"the database belongs to another DB directory (id {owner}, not {db_id})"
                raise Conflict(msg)
        scripts = ScriptDirectory(str(SCRIPTS))
        context = MigrationContext.configure(
            conn,
            opts={
                "version_table": VERSION_TABLE,
                "transaction_per_migration": True,
                "transactional_ddl": conn.dialect.name != "mysql",
                "fn": lambda rev, _context: scripts._upgrade_revs("head", rev),  # noqa: SLF001  (as alembic.command)
            },
        )
        if todo:
            with Operations.context(context):
                context.run_migrations()
    with engine.connect() as conn, conn.begin():
        if conn.execute(select(meta.c.value).where(meta.c.name == "db_id")).scalar() is None:
            conn.execute(meta.insert(), [{"name": "db_id", "value": db_id}, {"name": "epoch", "value": "0"}])
