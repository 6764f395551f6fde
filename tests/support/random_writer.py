"""One client that adds, kills and retries jobs at random and keeps a journal; see ``random_faults.py``.

Run as ``python random_writer.py SPEC`` with a JSON object:

* ``db``, ``writer`` (a name), ``journal`` (a file to append to), ``stop`` (a file whose appearance ends it);
* ``seed``: what it does follows from this and from the answers;
* ``script``: the jobs' program, called with the seconds that it takes, one of ``durations``, and its exit code;
* ``cli``: whether it calls the command line, a process for each call, instead of the Python API;
* ``timeout`` (seconds for a call of the API; null: the default), ``pause`` (seconds between calls, at most).

The journal has a line of JSON before each call and one after its answer, each forced to disk before the next step::

    {"call": 3, "kind": "add", "names": ["w0-3.0", "w0-3.1"], "at": 1234.567}
    {"call": 3, "answer": [17, 18], "at": 1234.570}
    {"call": 4, "kind": "kill", "names": ["w0-3.0"], "job": 17, "at": 1234.6}
    {"call": 4, "error": "outcome-unknown", "text": "the connection broke ...", "at": 1239.5}

``at`` is the machine's monotonic time. Without a second line the outcome is unknown: the client died first.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balsam_program import BALSAM
from exact_writer import Hurried

from balsam_core import BalsamError, Job, open_db
from balsam_core.client.jobs import Jobs

if TYPE_CHECKING:
    from collections.abc import Callable

CODES = {3: "not-found", 4: "conflict", 6: "unavailable", 7: "outcome-unknown"}
"""Errors by exit code, where the command line tells no more; 7 says that some or all of it may have been done."""


class API:
    """Calls through the Python API."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def add(self, batch: list[dict[str, Any]]) -> list[int]:
        """Add jobs; a parent is an id or the index of an earlier one of the batch, as a text."""
        made: list[Job] = []
        for one in batch:
            parents = [made[int(parent)] if isinstance(parent, str) else parent for parent in one["parents"]]
            made.append(Job(name=one["name"], command=one["command"], parents=parents))
        return self._jobs.add(made)

    def kill(self, job: int) -> int:
        """Kill a job."""
        return self._jobs.where(id=job).kill()

    def retry(self, job: int) -> int:
        """Start a job again."""
        return self._jobs.where(id=job).retry()


class CLI:
    """Calls by the command line."""

    def __init__(self, db: str) -> None:
        self._db = db

    def add(self, batch: list[dict[str, Any]]) -> list[int]:
        """Add one job."""
        (one,) = batch
        parents = [word for parent in one["parents"] for word in ("--parent", str(parent))]
        return [self._run("job", "--name", one["name"], "--command", one["command"], *parents)["id"]]

    def kill(self, job: int) -> int:
        """Kill a job."""
        return int(self._run("kill", str(job))["killed"])

    def retry(self, job: int) -> int:
        """Start a job again."""
        return int(self._run("retry", str(job))["retried"])

    def _run(self, *words: str) -> Any:
        done = subprocess.run(
            [*BALSAM, *words, "-o", "json", "--db", self._db], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return json.loads(done.stdout)
        if done.returncode < 0:  # killed: it may have sent its call
            raise Failed("killed", f"signal {-done.returncode}")
        raise Failed(CODES.get(done.returncode, f"exit code {done.returncode}"), done.stderr)


class Failed(Exception):
    """A command failed: code and text."""


def main() -> None:
    """Write until the stop file appears."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    if spec["cli"]:
        write(spec, CLI(spec["db"]), 1)
        return
    with open_db(spec["db"]) as db:
        write(spec, API(db.jobs if spec["timeout"] is None else Jobs(Hurried(db.transport, spec["timeout"]))), 3)


def write(spec: dict[str, Any], client: API | CLI, most: int) -> None:
    """Do one thing after the other; ``most`` is the number of jobs in one call."""
    chance = random.Random(spec["seed"])
    journal = os.open(spec["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    stop = Path(spec["stop"])
    added: list[tuple[int, str]] = []
    number = 0

    def step(kind: str, names: list[str], act: Callable[[], Any], **more: object) -> Any:
        """Make one call between two lines of the journal; None if it fails."""
        note({"call": number, "kind": kind, "names": names, **more})
        try:
            answer = act()
        except BalsamError as err:
            note({"call": number, "error": err.code, "text": str(err)})
        except Failed as err:
            note({"call": number, "error": err.args[0], "text": err.args[1]})
        else:
            note({"call": number, "answer": answer})
            return answer
        return None

    def note(line: dict[str, object]) -> None:
        os.write(journal, json.dumps({**line, "at": time.monotonic()}).encode() + b"\n")
        os.fsync(journal)

    while not stop.exists():
        number += 1
        draw = chance.random()
        if added and draw < 0.2:
            job, name = chance.choice(added[-20:])
            kind = "kill" if draw < 0.12 else "retry"
            step(kind, [name], partial(getattr(client, kind), job), job=job)
        else:
            batch: list[dict[str, Any]] = []
            for index in range(chance.randint(1, most)):
                # Parents that have just been added end at about the time at which their child comes.
                parents = [job for job, _ in added[-3:] if chance.random() < 0.3]
                parents += [str(chance.randrange(index))] if index and chance.random() < 0.5 else []
                seconds = chance.choice(spec["durations"])
                batch.append(
                    {
                        "name": f"{spec['writer']}-{number}.{index}",
                        "command": f"sh {spec['script']} {seconds} {int(chance.random() < 0.05)}",
                        "parents": parents,
                    }
                )
            names = [one["name"] for one in batch]
            ids = step("add", names, partial(client.add, batch))
            added += zip(ids or (), names, strict=False)
        time.sleep(chance.uniform(0, spec["pause"]))


if __name__ == "__main__":
    main()
