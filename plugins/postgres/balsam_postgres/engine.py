"""The SQLAlchemy engine.

Writers run under READ COMMITTED, whatever the server's default is: claims skip rows that others have locked, and an
update can't be lost where rows are locked. Readers get one snapshot, REPEATABLE READ and READ ONLY. psycopg puts both
into the BEGIN that it sends anyway.
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

_POOL_SIZE, _MAX_OVERFLOW = 2, 30  # connections: the server allows 300 for all processes


def make_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine on the database; nothing is connected yet."""
    creator: Callable[[], Any]
    if "url" in db.settings:
        creator = lambda: connect_adopted(db)  # noqa: E731
    else:
        creator = ServerConnector(db, lambda published: connect(db, published))
    engine = create_engine(
        "postgresql+psycopg://",
        creator=creator,
        poolclass=QueuePool,
        pool_size=_POOL_SIZE,
        max_overflow=_MAX_OVERFLOW,
        use_native_hstore=False,  # saves each program a query
    )

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        reads = role == "reader" or bool(conn.get_execution_options().get("balsam_reads", False))
        raw: Any = conn.connection.driver_connection
        if raw.read_only is not reads:
            level = psycopg.IsolationLevel
            raw.isolation_level = level.REPEATABLE_READ if reads else level.READ_COMMITTED
            raw.read_only = reads
        if raw.setting_statement:
            conn.exec_driver_sql(raw.setting_statement)

    @event.listens_for(engine, "handle_error")
    def mark_lost(context: ExceptionContext) -> None:
        if is_lost(context.original_exception):
            context.is_disconnect = True

    return engine
