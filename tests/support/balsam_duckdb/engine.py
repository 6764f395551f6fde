"""The engine, and what the core's write server needs to know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import duckdb
from sqlalchemy import create_engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.pool import QueuePool

from balsam_core.plugin import Corrupt, DBDirError, InvalidInput, SingleWriter, Unavailable, server_not_running, shown
from balsam_duckdb.dialect import alter
from balsam_duckdb.driver import Connection

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from balsam_core.plugin import BalsamError, DBDir, EngineRole

registry.register("duckdb", "balsam_duckdb.dialect", "DuckDBDialect")
SAVEPOINTS = False


def file_of(db: DBDir) -> Path:
    """Return the file."""
    return db.path / "db.duckdb"


def make_file(db: DBDir) -> None:
    """Make the file once."""
    if not file_of(db).exists():
        if db.settings:
            raise Corrupt(f"{shown(file_of(db))} is gone: restore it from a backup")
        Connection(str(file_of(db))).close()


def checkpoint(db: DBDir) -> None:
    """Bring the log into the file."""
    connection = Connection(str(file_of(db)))
    connection.run("CHECKPOINT")
    connection.close()


def make_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine for the one process that may open the file."""

    def connect() -> Connection:
        if "?" in str(db.path):
            raise DBDirError(f"DuckDB can't use a path with a question mark: move {shown(db.path)} to another one")
        if not file_of(db).exists():
            raise Corrupt(f"{shown(file_of(db))} is gone: restore it from a backup")
        return Connection(str(file_of(db)))

    engine = create_engine("duckdb://", creator=connect, poolclass=QueuePool)
    if role != "server":
        event.listen(engine, "begin", lambda conn: conn.exec_driver_sql("BEGIN"))

        @event.listens_for(engine, "before_cursor_execute", retval=True)
        def renaming(
            conn: Any,
            cursor: Any,
            statement: str,
            parameters: Any,
            context: Any,
            executemany: bool,
        ) -> tuple[str, Any]:
            return ("SELECT 1" if alter(cursor, statement) else statement), parameters

    return engine


def single_writer(db: DBDir) -> SingleWriter:
    """Return what the core's write server and its clients need to know."""

    def open_engine(role: EngineRole) -> Engine:
        if role != "server":
            raise server_not_running(db)
        return make_engine(db, role)

    return SingleWriter(
        open_engine=open_engine,
        is_retryable=lambda err: isinstance(err, duckdb.TransactionException) and "onflict" in str(err),
        translate=translate,
        is_fatal=lambda err: isinstance(err, (duckdb.FatalException, duckdb.InternalException, duckdb.IOException)),
        shared=False,
        savepoints=SAVEPOINTS,
    )


def translate(error: BaseException) -> BalsamError | None:
    """Return Balsam's error for one of DuckDB's."""
    if isinstance(error, (duckdb.ConversionException, duckdb.OutOfRangeException)):
        return InvalidInput(f"a value is out of the database's range: {error}")
    if isinstance(error, duckdb.IOException):
        return Unavailable(f"DuckDB can't use its file: {error}")
    return None
