"""The SQLAlchemy engine on the database.

Writers run under READ COMMITTED, whatever the server's default is: claims skip the locks of others, and a lost update
can't happen where rows are locked. Readers get one snapshot, REPEATABLE READ and READ ONLY. psycopg says both in the
BEGIN that it sends anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import create_engine, event
from sqlalchemy.pool import QueuePool

from balsam_core.plugin import ServerConnector
from balsam_postgres.connecting import connect, connect_adopted
from balsam_postgres.errors import is_lost

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine, ExceptionContext

    from balsam_core.plugin import DBDir, EngineRole

__all__ = ["make_engine"]

_KEPT, _MORE = 2, 30  # connections: the server has 300 for all processes


def make_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine; nothing is connected yet.

    Args:
        db: The DB directory.
        role: ``reader`` never writes.
    """
    creator: Callable[[], Any]
    if "url" in db.settings:
        creator = lambda: connect_adopted(db)  # noqa: E731
    else:
        creator = ServerConnector(db, lambda published: connect(db, published))
    engine = create_engine(
        "postgresql+psycopg://",
        creator=creator,
        poolclass=QueuePool,
        pool_size=_KEPT,
        max_overflow=_MORE,
        use_native_hstore=False,  # saves each program a question to the server
    )
    event.listen(engine, "begin", _begin_reading if role == "reader" else _begin)
    event.listen(engine, "handle_error", _note_loss)
    return engine


def _begin(conn: Connection) -> None:
    _set_mode(conn, reads=bool(conn.get_execution_options().get("balsam_reads", False)))


def _begin_reading(conn: Connection) -> None:
    _set_mode(conn, reads=True)


def _set_mode(conn: Connection, *, reads: bool) -> None:
    raw: Any = conn.connection.driver_connection
    if raw.read_only is not reads:
        level = psycopg.IsolationLevel
        raw.isolation_level = level.REPEATABLE_READ if reads else level.READ_COMMITTED
        raw.read_only = reads


def _note_loss(context: ExceptionContext) -> None:
    if is_lost(context.original_exception):
        context.is_disconnect = True
