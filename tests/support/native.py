"""NativeTransports on the test databases, with what the PostgreSQL and MySQL plugins will say of their errors."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import sqlalchemy as sa

from balsam_core.schema import migrate
from balsam_core.transport.native import NativeTransport

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

RETRYABLE_SQLSTATES = {"40001", "40P01"}  # PostgreSQL: serialization failure, deadlock
RETRYABLE_NUMBERS = {1205, 1213, 1020}  # MySQL and MariaDB: lock wait timeout, deadlock, row changed since read


def is_retryable(error: BaseException) -> bool:
    """Say whether the same transaction may succeed when repeated."""
    if isinstance(error, sqlite3.Error):
        return (error.sqlite_errorcode & 0xFF) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
    if getattr(error, "sqlstate", None) in RETRYABLE_SQLSTATES:
        return True
    return bool(error.args) and error.args[0] in RETRYABLE_NUMBERS


def make_engine(url: str) -> Engine:
    """Return an engine as the plugin of this database would make it."""
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"isolation_level": None, "timeout": 60, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")

    @sa.event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        reads = conn.get_execution_options().get("balsam_reads", False)
        conn.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def make_transport(url: str) -> NativeTransport:
    """Return a transport on a fresh database, with all tables."""
    engine = make_engine(url)
    migrate.upgrade(engine, db_id="test")
    return NativeTransport(engine, is_retryable=is_retryable)
