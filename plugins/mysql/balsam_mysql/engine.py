"""The SQLAlchemy engine.

A transaction begins by itself with its first statement, so it costs no statement to begin one. What it is, is a
property of the session: READ COMMITTED for one that may write, and for one that only reads READ ONLY under
REPEATABLE READ, which sees one state from its first read on. Changing it takes one statement, and only when a
connection is used for the other kind than the last time.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event
from sqlalchemy.pool import QueuePool

from balsam_core.plugin import ServerConnector
from balsam_mysql.connecting import READ_TIMEOUT, connect, connect_by_url
from balsam_mysql.errors import is_broken
from balsam_mysql.url import Target

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import ExceptionContext

    from balsam_core.plugin import DBDir, EngineRole

__all__ = ["make_engine"]

OWNER_READ_TIMEOUT = 4 * 3600  # seconds; changing a large table takes long
_WRITING = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE"
_READING = "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"

_open_here: weakref.WeakSet[Any] = weakref.WeakSet()
"""The connections of this process."""


def make_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine on the database.

    Args:
        db: The DB directory.
        role: What the engine is for.
    """
    read_timeout = OWNER_READ_TIMEOUT if role == "owner" else READ_TIMEOUT
    follow = ServerConnector(db, lambda published: connect(db, published, read_timeout=read_timeout))

    def connection() -> Any:  # noqa: ANN401
        if "url" in db.settings:
            made = connect_by_url(db, Target.parse(db.settings["url"]), read_timeout=read_timeout)
        else:
            made = follow()
        _open_here.add(made)
        return made

    engine = create_engine("mysql+mysqldb://", creator=connection, poolclass=QueuePool, pool_size=5, max_overflow=20)

    def begin(conn: Connection) -> None:
        reads = role == "reader" or conn.get_execution_options().get("balsam_reads", False)
        info = conn.connection.info
        if info.get("reads", False) != reads:
            conn.exec_driver_sql(_READING if reads else _WRITING)
            info["reads"] = reads

    event.listen(engine, "begin", begin)
    event.listen(engine, "handle_error", _judge)
    return engine


def _judge(context: ExceptionContext) -> None:
    if is_broken(context.original_exception):
        context.is_disconnect = True


def _let_go() -> None:
    """Cut a forked child off its parent's connections: closing one would say goodbye in the parent's name."""
    for connection in list(_open_here):
        try:
            descriptor = connection.fileno()
            nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        except Exception:  # noqa: BLE001, S112  (closed already)
            continue
        os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)
    _open_here.clear()


os.register_at_fork(after_in_child=_let_go)
