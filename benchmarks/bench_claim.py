"""Claiming 100 jobs with a million waiting, most of which don't fit, against claiming from ten thousand; same run.

On each kind of database; SQLite directly, the others through their servers. Also prints how long a claim takes while
three other launchers claim, and how long ``ls`` takes on both databases (the default listing is bounded), as ratios.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from backends_tools import running

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.model.calls import ClaimJobs, RegisterLauncher, Resources, Update, UpdateJobs

if TYPE_CHECKING:
    from collections.abc import Iterator

FIT = 10_000
WARM_UP = 8  # rounds; PostgreSQL settles its plans in the first ones
CLAIM_TARGETS = {"sqlite": 1.3, "postgres": 1.5, "mysql": 1.5}
TOGETHER = 4  # launchers
TOGETHER_TARGET = 2.0
PAUSE = 0.05  # seconds between the claims of one of them, in which it would run jobs
LS_TARGET = 1.5


def job_stream(count: int, *, spread: bool) -> Iterator[Job]:
    """Give ``count`` jobs, of which :data:`FIT` fit one node: the newest ones, or ``spread`` evenly over all."""
    every = max(1, count // FIT)
    for number in range(count):
        fits = number % every == 0 if spread else number >= count - FIT
        yield Job(command="true", num_nodes=1 if fits else 64)


def fill(path: Path, count: int, *, spread: bool = False) -> Path:
    """Fill a database with so many waiting jobs; an SQLite one where there is none yet."""
    if not path.exists():
        initialise(path, "sqlite")
    with open_db(path) as db:
        db.jobs.add(job_stream(count, spread=spread))
    return path


def claim(*paths: Path, rounds: int) -> list[float]:
    """Return for each database the median of the seconds that one claim of 100 jobs takes; they are given back."""
    times: list[list[float]] = [[] for _ in paths]
    with ExitStack() as stack:
        opened = [stack.enter_context(open_db(path)) for path in paths]
        me = [
            db.run(RegisterLauncher(host="bench", pid=1, boot_id="b", process_start=0.0, lease_seconds=900))
            for db in opened
        ]
        for number in range(WARM_UP + rounds):
            for db, launcher, spent in zip(opened, me, times, strict=True):
                call = ClaimJobs(launcher=launcher, limit=100, resources=Resources())
                begin = time.perf_counter()
                jobs = db.run(call).jobs
                if number >= WARM_UP:
                    spent.append(time.perf_counter() - begin)
                if len(jobs) != 100:
                    sys.exit(f"claimed {len(jobs)} jobs instead of 100")
                back = [Update(job=job.id or 0, attempt=job.attempt, release=True) for job in jobs]
                db.run(UpdateJobs(launcher=launcher, updates=back))
    return [statistics.median(spent) for spent in times]


def claim_beside_others(path: Path, rounds: int, launchers: int) -> float:
    """Return the median of the seconds that a claim of 100 jobs takes while so many launchers claim and give back."""
    words = [sys.executable, __file__, "--claim-in", path, "--rounds", str(rounds)]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(launchers)]
    return statistics.median(float(line) for one in running for line in one.communicate()[0].split())


def claim_now_and_then(path: Path, rounds: int) -> None:
    """Print how many seconds claims of 100 jobs take."""
    with open_db(path) as db:
        call = RegisterLauncher(host="bench", pid=1, boot_id="b", process_start=0.0, lease_seconds=900)
        launcher = db.run(call)
        for number in range(WARM_UP + rounds):
            begin = time.perf_counter()
            jobs = db.run(ClaimJobs(launcher=launcher, limit=100, resources=Resources())).jobs
            if number >= WARM_UP:
                print(time.perf_counter() - begin)
            time.sleep(PAUSE)
            back = [Update(job=job.id or 0, attempt=job.attempt, release=True) for job in jobs]
            db.run(UpdateJobs(launcher=launcher, updates=back))


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
    parser.add_argument("--db-types", default="sqlite,postgres,mysql", type=lambda text: text.split(","))
    parser.add_argument("--directory", default="/var/tmp", help="on a disk (default: /var/tmp)")  # noqa: S108
    parser.add_argument("--claim-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.claim_in:
        claim_now_and_then(options.claim_in, options.rounds)
        return
    missed = []
    with tempfile.TemporaryDirectory(prefix="balsam-bench-", dir=options.directory) as place, ExitStack() as stack:
        for db_type in options.db_types:
            pair = Path(place, f"{db_type}-small"), Path(place, f"{db_type}-large")
            if db_type != "sqlite":
                for path in pair:
                    stack.enter_context(running(path, db_type))
            for path, count in zip(pair, (FIT, options.jobs), strict=True):
                fill(path, count)
            a, b = claim(*pair, rounds=options.rounds)
            target = CLAIM_TARGETS[db_type]
            print(
                f"{db_type}: claim 100 jobs: {a * 1e3:.2f} ms of {FIT}, {b * 1e3:.2f} ms of {options.jobs}; "
                f"ratio {b / a:.2f} (at most {target})"
            )
            missed += [db_type] if b / a > 1.2 * target else []
            alone, beside = (claim_beside_others(pair[0], options.rounds, number) for number in (1, TOGETHER))
            print(
                f"{db_type}: claim 100 jobs: {alone * 1e3:.2f} ms of one launcher, {beside * 1e3:.2f} ms of "
                f"{TOGETHER}; ratio {beside / alone:.2f} (at most {TOGETHER_TARGET})"
            )
            missed += [f"{db_type} of {TOGETHER}"] if beside / alone > 1.2 * TOGETHER_TARGET else []
        if missed:
            sys.exit(f"missed by much: {', '.join(missed)}")
        if "sqlite" not in options.db_types:
            return
        large, tiny = Path(place, "sqlite-large"), fill(Path(place, "tiny"), 100)
        if options.spread:
            spread = fill(Path(place, "spread"), options.jobs, spread=True)
            a, c = claim(Path(place, "sqlite-small"), spread, rounds=options.rounds)
            print(f"  where every row that fits lies on a page of its own: {c * 1e3:.2f} ms, ratio {c / a:.2f}")
        pairs = [(ls(tiny), ls(large)) for _ in range(11)]
        a, b = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(
            f"balsam ls: {a * 1e3:.0f} ms of 100 jobs, {b * 1e3:.0f} ms of {options.jobs}; "
            f"ratio {b / a:.2f} (at most {LS_TARGET})"
        )


if __name__ == "__main__":
    main()
