"""The hooks of the SQLite backend. Importing this module loads neither SQLAlchemy nor sqlite3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.plugin import DBType, ServerPolicy, Unavailable, hookimpl, published_address, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sqlalchemy import Engine

    from balsam_core.plugin import DBDir, EngineRole, ServerPlan, Transport

__all__ = [
    "balsam_backup",
    "balsam_create_engine",
    "balsam_db_type",
    "balsam_init_db",
    "balsam_open_transport",
    "balsam_restore",
    "balsam_start_server",
]


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
    """Make ``db.sqlite3``, or check the one that is there."""
    from balsam_sqlite.init_files import init_file

    return init_file(db, options)


@hookimpl
def balsam_start_server(db: DBDir, host: str, port: int, tls: bool) -> ServerPlan:  # noqa: FBT001
    """Run the core's write server on the file."""
    from balsam_core.plugin import write_server_plan
    from balsam_sqlite.init_files import check_file, check_locks

    check_locks(db)
    check_file(db)
    return write_server_plan(db, host, port, engine="balsam_sqlite.server:single_writer")


@hookimpl
def balsam_open_transport(db: DBDir) -> Transport:
    """Go through the write server while one is published, else open the file."""
    from balsam_core.plugin import ServedTransport
    from balsam_sqlite.server import single_writer

    return ServedTransport(db, single_writer(db))


@hookimpl
def balsam_create_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine on the file."""
    from balsam_sqlite.engine import make_engine

    # Never behind a server's back, but to look.
    if role != "reader" and (server := published_address(db)):
        raise Unavailable(
            f"{shown(db.path)} is served at {server.place}: stop the server first with balsam dbserver "
            f"--stop --path={shown(db.path)}"
        )
    return make_engine(db, role)


@hookimpl
def balsam_backup(db: DBDir, target: Path) -> None:
    """Copy the file, beside a server and other writers."""
    from balsam_sqlite.backup import save

    save(db, target)


@hookimpl
def balsam_restore(db: DBDir, source: Path) -> None:
    """Copy a backup into the file."""
    from balsam_sqlite.backup import load

    load(db, source)
