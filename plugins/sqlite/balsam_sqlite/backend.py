"""The hooks of the SQLite backend. Importing this module loads neither SQLAlchemy nor sqlite3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.plugin import BackendError, DBType, ServerPolicy, Unavailable, hookimpl, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from balsam_core.plugin import Address, DBDir, EngineRole, ServerPlan, Transport

__all__ = [
    "balsam_create_engine",
    "balsam_db_type",
    "balsam_init_db",
    "balsam_open_transport",
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
    from balsam_sqlite.files import init_file

    return init_file(db, options)


@hookimpl
def balsam_start_server(db: DBDir, host: str, port: int) -> ServerPlan:
    """Refuse: the write server comes with a later version."""
    raise BackendError(f"{shown(db.path)}: this balsam-sqlite has no server yet; SQLite works without one")


@hookimpl
def balsam_open_transport(db: DBDir, address: Address | None) -> Transport:
    """Open the file directly; on a network file system that is refused."""
    from balsam_core.plugin import NativeTransport
    from balsam_sqlite.engine import is_retryable, make_engine, translate

    _refuse_server(db, address)
    return NativeTransport(make_engine(db, "writer"), is_retryable=is_retryable, translate=translate)


@hookimpl
def balsam_create_engine(db: DBDir, address: Address | None, role: EngineRole) -> Engine:
    """Return an engine on the file."""
    from balsam_sqlite.engine import make_engine

    _refuse_server(db, address)
    return make_engine(db, role)


def _refuse_server(db: DBDir, address: Address | None) -> None:
    # Never the file behind a server's back: its clients would lose the order of their writes.
    if address is not None:
        raise Unavailable(
            f"{shown(db.path)} is served at {address.host}:{address.port}, which this balsam-sqlite can't use yet: "
            f"pip install -U balsam-sqlite, or stop the server"
        )
