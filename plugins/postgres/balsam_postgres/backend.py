"""The hooks of the PostgreSQL backend. Importing this module loads neither SQLAlchemy nor psycopg."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.plugin import DBType, ServerPolicy, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from sqlalchemy import Connection, Engine

    from balsam_core.plugin import Address, DBDir, EngineRole, ServerPlan, Transport


@hookimpl
def balsam_db_type() -> DBType:
    """Return what this backend is."""
    return DBType(
        name="postgres",
        title="PostgreSQL",
        server=ServerPolicy.REQUIRED,
        plugin_api=1,
        driver="psycopg",
        driver_remedy="pip install 'psycopg[binary]'",
        options={
            "bindir": "folder of PostgreSQL's programs (initdb, postgres, pg_dump); empty: they are searched for",
            "durability": "full (default): a write that is acknowledged survives a power cut; relaxed: faster",
            "server_user": "as root: the account that the server runs as; default: root, without its rights",
            "store_password": "with a URL: yes (default): keep the password in keys/; no: BALSAM_DB_PASSWORD has it",
            "url": "postgresql://USER@HOST:PORT/DATABASE of a server that somebody else runs; without the password",
        },
    )


@hookimpl
def balsam_server_policy(db: DBDir) -> ServerPolicy:
    """A DB on somebody else's server needs none from Balsam."""
    return ServerPolicy.NONE if "url" in db.settings else ServerPolicy.REQUIRED


@hookimpl
def balsam_init_db(db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:
    """Make the server's data in ``postgres/``, or check the database that a URL names."""
    from balsam_postgres.init_files import init_files

    return init_files(db, options)


@hookimpl
def balsam_start_server(db: DBDir, host: str, port: int, tls: bool) -> ServerPlan:  # noqa: FBT001  (the hook's own)
    """Run ``postgres`` on the data."""
    from balsam_postgres.server import server_plan

    return server_plan(db, host, port, tls=tls)


@hookimpl
def balsam_open_transport(db: DBDir) -> Transport:
    """Run operations in this process, on connections to the server that is published at the moment."""
    from balsam_core.plugin import NativeTransport
    from balsam_postgres.engine import make_engine
    from balsam_postgres.errors import is_retryable, translate

    return NativeTransport(make_engine(db, "writer"), db=db, is_retryable=is_retryable, translate=translate)


@hookimpl
def balsam_create_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine on the server."""
    from balsam_postgres.engine import make_engine

    return make_engine(db, role)


@hookimpl
def balsam_bulk_insert(
    connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Insert many rows with COPY."""
    from balsam_postgres.bulk_insert import bulk_insert

    bulk_insert(connection, table, columns, rows)


@hookimpl
def balsam_warnings(db: DBDir) -> Sequence[str]:
    """Say what makes writes on somebody else's server less safe than promised."""
    from balsam_postgres.adopting import warnings

    return warnings(db) if "url" in db.settings else ()


@hookimpl
def balsam_backup(db: DBDir, address: Address | None, target: Path) -> None:
    """Write the database into a file with pg_dump."""
    from balsam_postgres.backup import backup

    backup(db, address, target)


@hookimpl
def balsam_restore(db: DBDir, address: Address | None, source: Path) -> None:
    """Fill the empty database from a file with pg_restore."""
    from balsam_postgres.backup import restore

    restore(db, address, source)
