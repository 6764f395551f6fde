"""What it costs that jobs become ready, or fail, per edge of their graph: of ten times as many jobs; same run.

Jobs are claimed and ended as a launcher does it, without processes. In a graph that fails, the first job does. Counted
is the processor time of this process and of the database's server, so that other load matters little. Also printed is
the longest call, since a launcher gives each call five seconds.

    python benchmarks/bench_graph.py [--jobs 100000] [--chain 10000] [--db-types sqlite,postgres,mysql]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from backends_tools import running

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.model.calls import Update, UpdateJobs
from balsam_core.model.states import State
from balsam_core.testing.tools import DONE, claim, register, server_processes

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core import Database

REQUIRED = 2.0
TIMEOUT = 300.0  # seconds for a call
AT_ONCE = 400  # jobs, as a launcher writes them
WIDTH = 1000
FINISHED = [(state, 0.0) for state in DONE]
FAILED = [(State.STAGED_IN, 0.0), (State.FAILED, 0.0)]


def job(number: int, parents: list[Job]) -> Job:
    """Return a job of a graph."""
    return Job(command="true", workflow="graph", name=str(number), parents=parents)


def fan_out(count: int) -> list[Job]:
    """Return one parent and its children."""
    top = job(0, [])
    return [top, *(job(number, [top]) for number in range(1, count))]


def fan_in(count: int) -> list[Job]:
    """Return one child and its parents."""
    parents = [job(number, []) for number in range(1, count)]
    return [*parents, job(0, parents)]


def wide(count: int) -> list[Job]:
    """Return layers, of which each job needs two of the layer before."""
    jobs: list[Job] = []
    for number in range(count):
        above = number - WIDTH
        left = above - above % WIDTH
        jobs.append(job(number, [jobs[above], jobs[left + (above + 1) % WIDTH]] if above >= 0 else []))
    return jobs


def chain(count: int) -> list[Job]:
    """Return jobs of which each needs the one before."""
    jobs = [job(number, []) for number in range(count)]
    for before, after in pairwise(jobs):
        after.parents = [before]
    return jobs


SHAPES: dict[str, Callable[[int], list[Job]]] = {
    "fan-out": fan_out,
    "fan-in": fan_in,
    "wide": wide,
    "chain": chain,
    "fan-out fails": fan_out,
    "chain fails": chain,
}


def cpu_seconds(db: Database, *, served: bool) -> float:
    """Return the processor time that this process and the server have taken."""
    total = time.process_time()
    for process in server_processes(db.directory) if served else []:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def drain(path: Path, shape: str, count: int, *, served: bool) -> tuple[float, float]:
    """End all jobs of a graph; returns microseconds of processor time per edge, and seconds of the longest call."""
    jobs = SHAPES[shape](count)
    with open_db(path) as db:
        db.jobs.add(jobs)
        launcher = register(db)
        longest = 0.0
        transitions = FAILED if "fails" in shape else FINISHED
        began = cpu_seconds(db, served=served)
        while taken := claim(db, launcher, AT_ONCE):
            updates = [Update(job=one.id or 0, attempt=one.attempt, transitions=transitions) for one in taken]
            call_began = time.perf_counter()
            refused = db.run(UpdateJobs(launcher=launcher, updates=updates), timeout=TIMEOUT)
            longest = max(longest, time.perf_counter() - call_began)
            if refused:
                sys.exit(f"updates were refused: {refused}")
        took = cpu_seconds(db, served=served) - began
        if left := db.jobs.where(Job.state.in_(["AWAITING_PARENTS", "READY"])).count():
            sys.exit(f"{left} of {len(jobs)} jobs are left")
    return took / sum(len(one.parents) for one in jobs) * 1e6, longest


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--chain", type=int, default=10_000, help="jobs of the chain")
    parser.add_argument("--shapes", default=",".join(SHAPES), type=lambda text: text.split(","))
    parser.add_argument("--db-types", default="sqlite,postgres,mysql", type=lambda text: text.split(","))
    parser.add_argument("--directory", default="/var/tmp", help="on a disk (default: /var/tmp)")  # noqa: S108
    options = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory(prefix="balsam-bench-", dir=options.directory) as place, ExitStack() as stack:
        for db_type in options.db_types:
            path = Path(place, db_type)
            served = db_type != "sqlite"
            if served:
                stack.enter_context(running(path, db_type))
            else:
                initialise(path, db_type)
            for shape in options.shapes:
                count = options.chain if "chain" in shape else options.jobs
                drain(path, shape, count // 50, served=served)
                small, _ = drain(path, shape, count // 10, served=served)
                large, longest = drain(path, shape, count, served=served)
                print(
                    f"{db_type}, {shape}: {small:.0f} us an edge of {count // 10} jobs, {large:.0f} us of {count}; "
                    f"ratio {large / small:.2f} (at most {REQUIRED}); longest call {longest:.2f} s",
                    flush=True,
                )
                missed += [f"{db_type} {shape}"] if large / small > REQUIRED else []
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
