"""The hooks of the SQLite backend. Importing this module loads neither SQLAlchemy nor sqlite3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.plugin import DBType, ServerPolicy, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sqlalchemy import Engine

    from balsam_core.plugin import DBDir, EngineRole, ServerPlan, Transport


@hookimpl
def balsam_db_type() -> DBType:
    """Return what this backend is."""
    return DBType(
        name="sqlite",
        title="SQLite",
        server=ServerPolicy.OPTIONAL,
        plugin_api=1,
        driver="_sqlite3",
        driver_remedy="use a Python that was built with SQLite (its sqlite3 module is missing)",
        options={"durability": "full (default): a write that is acknowledged survives a power cut; relaxed: faster"},
    )


@hookimpl
def balsam_init_db(db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:
    """Make ``db.sqlite3``, or check the existing one."""
    from balsam_sqlite.init_files import init_files

    return init_files(db, options)


@hookimpl
def balsam_start_server(db: DBDir, host: str, port: int, tls: bool) -> ServerPlan:  # noqa: FBT001
    """Run the core's write server on the file."""
    from balsam_sqlite.server import server_plan

    return server_plan(db, host, port)


@hookimpl
def balsam_open_transport(db: DBDir) -> Transport:
    """Use the write server while one is published, else open the file."""
    from balsam_core.plugin import ServedTransport
    from balsam_sqlite.server import single_writer

    return ServedTransport(db, single_writer(db))


@hookimpl
def balsam_create_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine on the file; while a server is published, only for reading."""
    from balsam_core.plugin import refuse_while_served
    from balsam_sqlite.engine import make_engine

    if role != "reader":
        refuse_while_served(db)
    return make_engine(db, role)


@hookimpl
def balsam_backup(db: DBDir, target: Path) -> None:
    """Copy the file while a server and other programs use it."""
    from balsam_sqlite.backup import backup

    backup(db, target)


@hookimpl
def balsam_restore(db: DBDir, source: Path) -> None:
    """Copy a backup into the file."""
    from balsam_sqlite.backup import restore

    restore(db, source)
