"""The SQLAlchemy engine.

A transaction begins by itself with its first statement, so no statement is spent on that. Its kind is a property of the
session: READ COMMITTED for one that may write; READ ONLY under REPEATABLE READ, which sees one state from its first
read on, for one that only reads. Changing the kind takes one statement, only when a connection is used for the other
kind than the last time.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event
from sqlalchemy.pool import QueuePool

from balsam_core.plugin import ServerConnector
from balsam_mysql.connecting import READ_TIMEOUT, connect, connect_adopted
from balsam_mysql.errors import is_lost
from balsam_mysql.url import Target

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import ExceptionContext

    from balsam_core.plugin import DBDir, EngineRole

OWNER_READ_TIMEOUT = 4 * 3600  # seconds; changing a large table takes long
_WRITING = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE"
_READING = "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"

_connections: weakref.WeakSet[Any] = weakref.WeakSet()
"""The connections of this process."""


def make_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine on the database; nothing is connected yet. ``owner`` waits longer for an answer."""
    read_timeout = OWNER_READ_TIMEOUT if role == "owner" else READ_TIMEOUT
    connect_own = ServerConnector(db, lambda published: connect(db, published, read_timeout=read_timeout))

    def creator() -> Any:  # noqa: ANN401
        if "url" in db.settings:
            connection = connect_adopted(db, Target.parse(db.settings["url"]), read_timeout=read_timeout)
        else:
            connection = connect_own()
        _connections.add(connection)
        return connection

    engine = create_engine("mysql+mysqldb://", creator=creator, poolclass=QueuePool, pool_size=5, max_overflow=20)

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        reads = role == "reader" or conn.get_execution_options().get("balsam_reads", False)
        info = conn.connection.info
        if info.get("reads", False) != reads:
            conn.exec_driver_sql(_READING if reads else _WRITING)
            info["reads"] = reads

    @event.listens_for(engine, "handle_error")
    def mark_lost(context: ExceptionContext) -> None:
        if is_lost(context.original_exception):
            context.is_disconnect = True

    return engine


def _detach_connections() -> None:
    """Cut a forked child off its parent's connections: closing one would end the parent's session."""
    for connection in list(_connections):
        try:
            descriptor = connection.fileno()
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        except Exception:  # noqa: BLE001, S112  (closed already)
            continue
        os.dup2(null, descriptor, inheritable=False)
        os.close(null)
    _connections.clear()


os.register_at_fork(after_in_child=_detach_connections)
