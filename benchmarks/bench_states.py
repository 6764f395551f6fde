"""Claiming and finishing jobs without running them, against a plain sqlite3 loop that does the same by hand.

Both claim 200 jobs and then finish these 200, each in a durable transaction, in turns, until 40,000 are done: on
SQLite, in the same tables, with the same rows of history and of attempts. The hand-written loop does nothing that it
doesn't need: no encoding, no check of holder and path, no request ids, no children. Prints the ratios of
throughputs and of processor times, from the medians of the turns, and exits 1 where the throughput is too low.

    python benchmarks/bench_states.py [--jobs 40000] [--profile] [--directory DIR]
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import os
import pstats
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.model.calls import ClaimJobs, RegisterLauncher, Resources, Run, Update, UpdateJobs
from balsam_core.model.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AT_ONCE = 200
REQUIRED = 0.4
PATH = (
    State.STAGED_IN,
    State.PREPROCESSED,
    State.RUNNING,
    State.RUN_DONE,
    State.POSTPROCESSED,
    State.JOB_FINISHED,
)


class Cost(NamedTuple):
    """Seconds of wall time and of processor time."""

    wall: float
    cpu: float


def ages(number: int) -> list[float]:
    """Give the seconds since each transition of a job, different for each job."""
    begin = 0.05 - number * 1e-4
    return [begin - step * 1e-3 for step in range(len(PATH))]


@contextmanager
def ours(place: Path) -> Iterator[Callable[[], int]]:
    """Give what claims and finishes some jobs by Balsam's calls, as a launcher does."""
    with open_db(place) as db:
        me = db.run(RegisterLauncher(host="bench", pid=1, boot_id="b", process_start=0.0, lease_seconds=900))
        claim = ClaimJobs(launcher=me, limit=AT_ONCE, resources=Resources())

        def once() -> int:
            jobs = db.run(claim).jobs
            updates = [
                Update(
                    job=job.id or 0,
                    attempt=job.attempt,
                    transitions=list(zip(PATH, ages(number), strict=True)),
                    return_code=0,
                    run=Run(0.05, 0.001, 0.001, 1 << 20),
                )
                for number, job in enumerate(jobs)
            ]
            if updates and (refused := db.run(UpdateJobs(launcher=me, host="bench", updates=updates))):
                sys.exit(f"refused: {refused}")
            return len(updates)

        yield once


@contextmanager
def by_hand(place: Path) -> Iterator[Callable[[], int]]:
    """Give what does the same by sqlite3 in the same tables, with a good engineer's statements."""
    template = ", ".join(f"{state} %.6f" for state in PATH)
    with closing(sqlite3.connect(place / "db.sqlite3", isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA cache_size=-16384")
        (number,) = connection.execute("SELECT min(id) FROM resource_classes").fetchone()

        def once() -> int:
            connection.execute("BEGIN IMMEDIATE")
            taken = connection.execute(
                "UPDATE jobs SET launcher_id = 1, attempt = attempt + 1, claim_class = NULL WHERE id IN ("
                "SELECT id FROM jobs WHERE claim_class = ? ORDER BY priority DESC, id LIMIT ?) "
                "RETURNING *, (SELECT name FROM workflows WHERE id = workflow_id)",
                (number, AT_ONCE),
            ).fetchall()
            connection.execute("COMMIT")
            ids = [row[0] for row in taken]
            now = datetime.now(UTC).replace(tzinfo=None).isoformat(" ")
            connection.execute("BEGIN IMMEDIATE")
            marks = ", ".join("?" * len(ids))
            connection.execute(
                "UPDATE jobs SET state = 'JOB_FINISHED', state_since = ?, launcher_id = NULL, return_code = 0 "  # noqa: S608
                f"WHERE launcher_id = 1 AND id IN ({marks})",
                (now, *ids),
            )
            connection.executemany(
                "INSERT INTO job_events (job_id, at, transitions, attempt) VALUES (?, ?, ?, 1)",
                [(job, now, template % tuple(ages(at))) for at, job in enumerate(ids)],
            )
            connection.executemany(
                "INSERT INTO attempts (job_id, attempt, launcher_id, host, started_at, elapsed, cpu_seconds, "
                "max_memory, return_code, outcome) VALUES (?, 1, 1, 'bench', ?, 0.001, 0.001, 1048576, 0, "
                "'JOB_FINISHED')",
                [(job, now) for job in ids],
            )
            connection.execute("COMMIT")
            return len(ids)

        yield once


def timed(once: Callable[[], int]) -> Cost:
    """Do it once; give what one job took."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = once()
    return Cost((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count)


def main() -> int:
    """Run the benchmark; give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=40_000)
    parser.add_argument("--profile", action="store_true", help="also show where Balsam's time goes")
    parser.add_argument("--directory", default="/var/tmp", help="on a disk (default: /var/tmp)")  # noqa: S108
    options = parser.parse_args()
    os.environ.pop("BALSAM_DB_PATH", None)
    profile = cProfile.Profile(time.thread_time) if options.profile else None
    costs: dict[str, list[Cost]] = {"ours": [], "by hand": []}
    with tempfile.TemporaryDirectory(prefix="balsam-bench-", dir=options.directory) as folder, ExitStack() as stack:
        places = [Path(folder, name) for name in costs]
        for place in places:
            initialise(place, "sqlite")
            with open_db(place) as db:
                db.jobs.add(Job(name="true", command="/bin/true") for _ in range(options.jobs))
        sides = [stack.enter_context(run(place)) for run, place in zip((ours, by_hand), places, strict=True)]
        for once in sides:
            once()
        gc.freeze()  # as a launcher does
        for _ in range(options.jobs // AT_ONCE - 1):
            for once, measured in zip(sides, costs.values(), strict=True):
                with profile if profile and once is sides[0] else nullcontext():
                    measured.append(timed(once))
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)
    one, hand = (Cost(*map(statistics.median, zip(*measured, strict=True))) for measured in costs.values())
    for name, cost in (("Balsam", one), ("by hand", hand)):
        print(f"{name:8} {1 / cost.wall:8,.0f} jobs/s, {cost.cpu * 1e6:6.1f} us of processor time for each")
    ratio = hand.wall / one.wall
    print(f"Balsam / by hand: {ratio:.2f} (required: {REQUIRED}); by processor time: {hand.cpu / one.cpu:.2f}")
    return 0 if ratio >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
