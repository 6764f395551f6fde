"""The core's write server on the file, and what it and its clients need to know of SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.plugin import SingleWriter, is_network, write_server_plan
from balsam_sqlite.errors import is_fatal, is_retryable, translate

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from balsam_core.plugin import DBDir, EngineRole, ServerPlan


def server_plan(db: DBDir, host: str, port: int) -> ServerPlan:
    """Return how to run the write server, after a check of the file; errors as of ``init_files.check_file``."""
    from balsam_sqlite.init_files import check_file, check_locks

    check_locks(db)
    check_file(db)
    return write_server_plan(db, host, port, engine="balsam_sqlite.server:single_writer")


def single_writer(db: DBDir) -> SingleWriter:
    """Return how the database is opened; SQLAlchemy is imported only then."""
    file = str(db.path / "db.sqlite3")
    opened: tuple[int, int] | None = None

    def open_engine(role: EngineRole) -> Engine:
        from balsam_sqlite.engine import make_engine
        from balsam_sqlite.init_files import file_identity

        nonlocal opened
        if role == "server":
            opened = file_identity(file)
        return make_engine(db, role)

    def is_replaced() -> bool:
        from balsam_sqlite.init_files import file_identity

        return opened is not None and opened != file_identity(file)

    def secure() -> None:
        from balsam_sqlite.init_files import force_log_to_disk

        force_log_to_disk(db)

    return SingleWriter(
        is_replaced=is_replaced,
        open_engine=open_engine,
        begin="BEGIN IMMEDIATE",
        is_retryable=is_retryable,
        translate=translate,
        is_fatal=is_fatal,
        secure=secure,
        version="PRAGMA data_version",
        # SQLite's log needs memory shared between all who open the file: https://sqlite.org/wal.html
        shared=not is_network(db.path),
    )
