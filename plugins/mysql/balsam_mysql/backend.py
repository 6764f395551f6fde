"""The hooks of the MySQL and MariaDB backend. Importing this module loads neither SQLAlchemy nor the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.plugin import DBType, ServerPolicy, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Engine

    from balsam_core.plugin import Address, DBDir, EngineRole, ServerPlan, Transport


@hookimpl
def balsam_db_type() -> DBType:
    """Return what this backend is."""
    return DBType(
        name="mysql",
        title="MySQL/MariaDB",
        server=ServerPolicy.REQUIRED,
        plugin_api=1,
        driver="MySQLdb",
        driver_remedy=(
            "pip install mysqlclient, which needs the client's headers "
            "(Debian, Ubuntu: apt-get install default-libmysqlclient-dev build-essential python3-dev pkg-config)"
        ),
        options={
            "bindir": "folder of the programs mariadbd or mysqld; else they are looked for",
            "durability": "full (default): a write that is acknowledged survives a power cut; relaxed: faster",
            "memory": "size of the server's cache, e.g. 2G; default: 128M",
            "server_user": "account that the server runs as when root starts it; default: the owner of its data",
            "store_password": "yes (default) or no: then BALSAM_DB_PASSWORD is read at each connection; with url only",
            "url": "mysql://USER@HOST:PORT/DATABASE of a server that somebody else runs",
        },
    )


@hookimpl
def balsam_server_policy(db: DBDir) -> ServerPolicy:
    """A DB on somebody else's server needs none from Balsam."""
    return ServerPolicy.NONE if "url" in db.settings else ServerPolicy.REQUIRED


@hookimpl
def balsam_init_db(db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:
    """Make the server's data in ``mysql/``, or check the database that a URL names."""
    from balsam_mysql.init_files import init_files

    return init_files(db, options)


@hookimpl
def balsam_start_server(db: DBDir, host: str, port: int) -> ServerPlan:
    """Run ``mariadbd`` or ``mysqld`` on the data, always with TLS."""
    from balsam_mysql.server import server_plan

    return server_plan(db, host, port)


@hookimpl
def balsam_open_transport(db: DBDir) -> Transport:
    """Run operations in this process, on connections to the server that is published at the moment."""
    from balsam_core.plugin import NativeTransport
    from balsam_mysql.engine import make_engine
    from balsam_mysql.errors import is_retryable, translate

    return NativeTransport(make_engine(db, "writer"), db=db, is_retryable=is_retryable, translate=translate)


@hookimpl
def balsam_create_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine on the server."""
    from balsam_mysql.engine import make_engine

    return make_engine(db, role)


@hookimpl
def balsam_warnings(db: DBDir) -> Sequence[str]:
    """Say what makes writes on somebody else's server less safe than promised."""
    from balsam_mysql.adopting import warnings

    return warnings(db) if "url" in db.settings else ()


@hookimpl
def balsam_backup(db: DBDir, address: Address | None, target: Path) -> None:
    """Let the server's own program write the database as SQL, from one snapshot."""
    from balsam_mysql.backup import backup

    backup(db, address, target)


@hookimpl
def balsam_restore(db: DBDir, address: Address | None, source: Path) -> None:
    """Let the server's own client read such a file."""
    from balsam_mysql.backup import restore

    restore(db, address, source)
