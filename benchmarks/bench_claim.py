"""Claiming 100 jobs with a million waiting, most of which don't fit, against claiming from ten thousand; same run.

Also prints how long ``ls`` takes on both databases (the default listing is bounded), as a ratio.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core import Job, open_db
from balsam_core.initialise import initialise
from balsam_core.model.calls import ClaimJobs, RegisterLauncher, Resources, Update, UpdateJobs

if TYPE_CHECKING:
    from collections.abc import Iterator

FIT = 10_000
CLAIM_TARGET = 1.3
LS_TARGET = 1.5


def job_stream(count: int, *, spread: bool) -> Iterator[Job]:
    """Give ``count`` jobs, of which :data:`FIT` fit one node: the newest ones, or ``spread`` evenly over all."""
    every = max(1, count // FIT)
    for number in range(count):
        fits = number % every == 0 if spread else number >= count - FIT
        yield Job(command="true", num_nodes=1 if fits else 64)


def fill(path: Path, count: int, *, spread: bool = False) -> Path:
    """Make a database with so many waiting jobs."""
    initialise(path, "sqlite")
    with open_db(path) as db:
        db.jobs.add(job_stream(count, spread=spread))
    return path


def claim(path: Path, rounds: int) -> float:
    """Return the median of the seconds that one claim of 100 jobs takes; they are given back afterwards."""
    times = []
    with open_db(path) as db:
        me = db.run(RegisterLauncher(host="bench", pid=1, boot_id="b", process_start=0.0, lease_seconds=900))
        call = ClaimJobs(launcher=me, limit=100, resources=Resources())
        for _ in range(rounds):
            begin = time.perf_counter()
            jobs = db.run(call).jobs
            times.append(time.perf_counter() - begin)
            if len(jobs) != 100:
                sys.exit(f"claimed {len(jobs)} jobs instead of 100")
            back = [Update(job=job.id or 0, attempt=job.attempt, release=True) for job in jobs]
            db.run(UpdateJobs(launcher=me, updates=back))
    return statistics.median(times)


def ls(path: Path) -> float:
    """Return the seconds that ``balsam ls`` takes."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "balsam_core.cli", "--db", path, "ls"], check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--spread", action="store_true", help="also the worst layout: a page for each job that fits")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        small, large = fill(Path(place, "small"), FIT), fill(Path(place, "large"), options.jobs)
        tiny = fill(Path(place, "tiny"), 100)
        a, b = claim(small, options.rounds), claim(large, options.rounds)
        print(
            f"claim 100 jobs: {a * 1e3:.2f} ms of {FIT}, {b * 1e3:.2f} ms of {options.jobs}; "
            f"ratio {b / a:.2f} (at most {CLAIM_TARGET})"
        )
        if options.spread:
            c = claim(fill(Path(place, "spread"), options.jobs, spread=True), options.rounds)
            print(f"  where every row that fits lies on a page of its own: {c * 1e3:.2f} ms, ratio {c / a:.2f}")
        pairs = [(ls(tiny), ls(large)) for _ in range(11)]
        a, b = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(
            f"balsam ls: {a * 1e3:.0f} ms of 100 jobs, {b * 1e3:.0f} ms of {options.jobs}; "
            f"ratio {b / a:.2f} (at most {LS_TARGET})"
        )


if __name__ == "__main__":
    main()
