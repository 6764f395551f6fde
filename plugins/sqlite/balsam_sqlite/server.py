"""SQLite as an engine with a single writer: what the core's write server and its clients need to know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.plugin import SingleWriter, is_network
from balsam_sqlite.errors import is_fatal, is_retryable, translate

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from balsam_core.plugin import DBDir, EngineRole

__all__ = ["single_writer"]


def single_writer(db: DBDir) -> SingleWriter:
    """Return how the database of a DB directory is opened; SQLAlchemy is imported when it is."""

    def open_engine(role: EngineRole) -> Engine:
        from balsam_sqlite.engine import make_engine

        return make_engine(db, role)

    def secure() -> None:
        from balsam_sqlite.init_files import force_log_to_disk

        force_log_to_disk(db)

    return SingleWriter(
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
