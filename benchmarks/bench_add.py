"""``db.jobs.add`` of many jobs against stdlib ``sqlite3.executemany`` writing the same rows, in the same run.

The peer reads the rows that Balsam wrote and writes them into the same tables with the same indexes, in one transaction
with the same durability. Peak memory is measured in fresh processes, so that one size can't hide behind another.
"""

from __future__ import annotations

import argparse
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES = ("workflows", "resource_classes", "counters", "jobs", "job_events")
TARGET = 0.25


def job_stream(count: int) -> Iterator[Job]:
    """Give jobs as a parameter sweep makes them."""
    for number in range(count):
        yield Job(name=f"sim{number}", workflow="scan", command="sim.x --x {x}", parameters={"x": number})


def add(path: Path, count: int) -> float:
    """Add jobs to a new database; returns seconds."""
    initialise(path, "sqlite")
    with open_db(path) as db:
        begin = time.perf_counter()
        db.jobs.add(job_stream(count))
        return time.perf_counter() - begin


def executemany(source: Path, path: Path) -> float:
    """Write the rows of another database into a new one; returns seconds."""
    initialise(path, "sqlite")
    with closing(sqlite3.connect(source / "db.sqlite3")) as old:
        rows = {table: old.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}  # noqa: S608
    with closing(sqlite3.connect(path / "db.sqlite3", isolation_level=None)) as new:
        new.execute("PRAGMA synchronous=FULL")
        begin = time.perf_counter()
        new.execute("BEGIN IMMEDIATE")
        for table, values in rows.items():
            marks = ", ".join("?" * len(values[0]))
            new.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", values)  # noqa: S608
        new.execute("COMMIT")
        return time.perf_counter() - begin


def peak(count: int) -> int:
    """Return the peak memory in MiB of a fresh process that adds so many jobs."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "--peak-of", str(count), "--place", place]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="also compare the peak memory of 10^5 and 10^6 jobs")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        add(options.place / "db", options.peak_of)
        sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))
        return
    ours, theirs = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as place:
            ours.append(add(Path(place, "ours"), options.jobs))
            theirs.append(executemany(Path(place, "ours"), Path(place, "theirs")))
    a, b = statistics.median(ours), statistics.median(theirs)
    print(
        f"add {options.jobs} jobs: {options.jobs / a:.0f} jobs/s, sqlite3.executemany {options.jobs / b:.0f} jobs/s; "
        f"ratio {b / a:.2f} (at least {TARGET})"
    )
    if options.memory:
        small, large = peak(100_000), peak(1_000_000)
        print(f"peak memory: 10^5 jobs {small} MiB, 10^6 jobs {large} MiB; ratio {large / small:.2f}")


if __name__ == "__main__":
    main()
