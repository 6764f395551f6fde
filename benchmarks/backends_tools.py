"""What the benchmarks of several databases share: a DB with its server, a bare connection to it, empty tables."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from balsam_core import open_db
from balsam_core.admin.initialise import initialise
from balsam_core.transport.native import NativeTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BALSAM = [sys.executable, "-m", "balsam_core.cli"]
FILLED = ("workflows", "resource_classes", "counters", "jobs", "job_events")
"""The tables that adding jobs fills for good, in the order in which they refer to each other."""

PASSING = ("processed_requests", "staged_inserts", "job_edges")


@contextmanager
def running(path: Path, db_type: str) -> Iterator[Path]:
    """Make a DB and run its server, SQLite's too; both end with the block."""
    initialise(path, db_type)
    subprocess.run([*BALSAM, "dbserver", "--path", path], check=True, stdout=subprocess.DEVNULL)
    try:
        yield path
    finally:
        subprocess.run([*BALSAM, "--db", path, "dbserver", "--stop"], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def bare(path: Path) -> Iterator[Any]:
    """Give a driver's connection to a DB's PostgreSQL or MariaDB server, as Balsam would connect."""
    with open_db(path) as db:
        transport = db.transport
        assert isinstance(transport, NativeTransport)
        held = transport.engine.raw_connection()
        try:
            yield held.driver_connection
        finally:
            held.close()


def empty(path: Path) -> None:
    """Remove all jobs and what was made for them."""
    tables = [*PASSING, *reversed(FILLED)]
    with bare(path) as connection:
        cursor = connection.cursor()
        if type(connection).__module__.startswith("psycopg"):
            cursor.execute(f"TRUNCATE {', '.join(tables)}")
        else:
            cursor.execute("SET foreign_key_checks = 0")
            for table in tables:
                cursor.execute(f"TRUNCATE {table}")
            cursor.execute("SET foreign_key_checks = 1")
        connection.commit()
