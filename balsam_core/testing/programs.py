"""Programs that tests run several of at once: ``python -m balsam_core.testing.programs NAME DB ...``.

Each opens the DB as any program does, prints ``ready``, and begins when a line comes on its standard input.
"""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from balsam_core import Database, Job, open_db
from balsam_core.errors import Conflict, NotFound
from balsam_core.model import calls
from balsam_core.model.calls import Update
from balsam_core.testing.tools import DONE, WAIT_TIMEOUT, claim, register

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def write(db: Database, name: str, count: str) -> None:
    """Add jobs one by one, every fifth under a key that all writers use; print each id."""
    for number in range(int(count)):
        key = f"shared-{number}" if number % 5 == 0 else None
        job = Job(command="x", workflow=f"flow-{number % 3}", name=f"{name}-{number}", key=key)
        print_line(db.jobs.add(job, if_exists="keep")[0])


def share(db: Database, seed: str, turns: str) -> None:
    """Add jobs under keys that others add at the same moment, in another order; print each key with its id."""
    chance = random.Random(int(seed))  # noqa: S311  (not for secrets)
    for turn in range(int(turns)):
        keys = [f"{turn}-{number}" for number in chance.sample(range(12), 6)]
        ids = db.jobs.add([Job(command="x", key=key) for key in keys])
        print_line(*(f"{key}={number}" for key, number in zip(keys, ids, strict=True)))


def write_on(db: Database, name: str) -> None:
    """Add jobs until standard input ends; print each name once it is acknowledged."""
    import threading

    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    number = 0
    while not ended.is_set():
        db.jobs.add(Job(command="x", name=f"{name}-{number}"))
        print_line(f"{name}-{number}")
        number += 1


def take(db: Database) -> None:
    """Claim and finish jobs until there are none; print their ids."""
    me = register(db)
    empty = 0
    while empty < 3:
        taken = claim(db, me, 5)
        empty = 0 if taken else empty + 1
        finish(db, me, taken)
        print_line(*(job.id for job in taken))


def churn(db: Database, seed: str, rounds: str) -> None:
    """Run at random all operations that lock several jobs, in any order; the only errors may be conflicts."""
    chance = random.Random(int(seed))  # noqa: S311  (not for secrets)
    me = register(db)
    for _ in range(int(rounds)):
        ids = db.jobs.ids()
        chosen = chance.sample(ids, min(6, len(ids)))
        try:
            match chance.randrange(5):
                case 0:
                    db.jobs.add([Job(command="x", parents=chosen[:2]) for _ in range(4)])
                case 1:
                    db.jobs.where(Job.id.in_(chosen[:2])).kill()
                case 2:
                    db.jobs.where(Job.id.in_(chosen)).retry()
                case 3:
                    db.jobs.add_dependency(min(chosen), max(chosen))
                case _:
                    finish(db, me, claim(db, me, 6)[::-1])
        except (Conflict, NotFound, ValueError):
            continue
    db.run(calls.CloseLauncher(launcher=me))


def finish(db: Database, launcher: int, jobs: list[Job]) -> None:
    """Record that claimed jobs have finished."""
    transitions = [(transition, 0.0) for transition in DONE]
    updates = [Update(job=job.id or 0, attempt=job.attempt, transitions=transitions) for job in jobs]
    db.run(calls.UpdateJobs(launcher=launcher, updates=updates))


def print_line(*words: object) -> None:
    """Print without delay."""
    print(*words, flush=True)  # noqa: T201


@contextmanager
def running(programs: Iterable[Sequence[object]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start programs and let them begin together; what still runs in the end is killed."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "balsam_core.testing.programs", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in programs
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def outputs(processes: Iterable[subprocess.Popen[str]]) -> list[str]:
    """Close the standard input of programs, wait for their end, and return what they print; none may fail."""
    found = []
    for process in processes:
        out, error = process.communicate(timeout=WAIT_TIMEOUT)
        assert process.returncode == 0, error
        found.append(out)
    return found


def run_together(programs: Iterable[Sequence[object]]) -> list[str]:
    """Run programs at the same time and return what they print."""
    with running(programs) as processes:
        return outputs(processes)


PROGRAMS = {"write": write, "share": share, "write-on": write_on, "take": take, "churn": churn}

if __name__ == "__main__":
    with open_db(sys.argv[2]) as opened:
        opened.info()
        print_line("ready")
        sys.stdin.readline()
        PROGRAMS[sys.argv[1]](opened, *sys.argv[3:])  # type: ignore[operator]
