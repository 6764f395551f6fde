"""One client that writes through the public Python API and keeps a journal of what it was told; see ``exact.py``.

Run as ``python exact_writer.py SPEC`` with a JSON object:

* ``db``, ``writer`` (a name), ``journal`` (a file to append to);
* ``count`` (0: until stopped), ``stop`` (a file whose appearance ends it), ``pause`` (seconds between jobs);
* ``kill_every`` (each Nth job is killed, as a second kind of write; 0: none);
* ``timeout`` (seconds for a call; null: the default).

It says ``ready`` when the database is open and begins at the end of a line on standard input. The journal has a line
for each step, written by one system call before or after it, so that it survives the writer's death::

    add 17 sent 1234.567            about to add job number 17; monotonic time
    add 17 acked 1234.570 3021      done: id 3021
    add 17 failed 1239.5 outcome-unknown the connection broke ...
    kill 17 sent ... / acked ... 1 / failed ...

After an error of Balsam's it goes on with the next job: each job is attempted once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from balsam_core import BalsamError, Job, open_db
from balsam_core.client.jobs import Jobs
from balsam_core.transport.base import Transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.model.calls import Call

R = TypeVar("R")


class Hurried(Transport):
    """A transport with another default deadline."""

    def __init__(self, inner: Transport, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds

    def run(self, call: Call[R], *, timeout: float | None = None) -> R:
        return self._inner.run(call, timeout=self._seconds if timeout is None else timeout)

    def close(self) -> None:
        self._inner.close()


def main() -> None:
    """Write until the count is reached or the stop file appears."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    journal = os.open(spec["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    stop, kill_every = Path(spec["stop"]), spec["kill_every"]
    with open_db(spec["db"]) as db:
        jobs = db.jobs if spec["timeout"] is None else Jobs(Hurried(db.transport, spec["timeout"]))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        number = 0
        while not (stop.exists() or number == spec["count"] > 0):
            job = Job(name=f"{spec['writer']}-{number}", command="true", workflow="exact")
            answer = step(journal, f"add {number}", partial(add, jobs, job))
            if answer is not None and kill_every and number % kill_every == 0:
                step(journal, f"kill {number}", jobs.where(id=answer).kill)
            number += 1
            time.sleep(spec["pause"])


def add(jobs: Jobs, job: Job) -> int:
    """Add a job and return its id."""
    return jobs.add(job)[0]


def step(journal: int, name: str, act: Callable[[], int]) -> int | None:
    """Do one thing between two lines of the journal; None if it fails."""
    note(journal, name, "sent")
    try:
        answer = act()
    except BalsamError as err:
        note(journal, name, "failed", err.code, " ".join(str(err).split()))
        return None
    note(journal, name, "acked", answer)
    return answer


def note(journal: int, name: str, what: str, *words: object) -> None:
    """Write one line."""
    os.write(journal, " ".join(map(str, [name, what, f"{time.monotonic():.6f}", *words, "\n"])).encode())


if __name__ == "__main__":
    main()
