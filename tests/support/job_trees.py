"""Jobs that start processes in every way in which those escape a process group, and that note when they run."""

from __future__ import annotations

import shlex
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

from balsam_core import Job
from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core import Database

_DAEMON = (
    "import os, subprocess, sys; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
_NEW_SESSION = "import subprocess, sys; subprocess.run(sys.argv[1:], start_new_session=True)"

# How the work is started: its own process id is in the file `pid`, and it ends when the file `go` is there.
TREES = {
    "plain": "{work}",
    "background": "{work} & wait",
    "timeout": "timeout 600 {work}",
    "own group": "set -m; {work} & wait",
    "own session": "setsid {work} & wait",
    "new session": f"{shlex.join([sys.executable, '-c', _NEW_SESSION])} {{work}}",
    "double fork": f"{shlex.join([sys.executable, '-c', _DAEMON])} {{work}}; until test -e done; do sleep 0.02; done",
}
_WORK = """
echo "begin $BALSAM_JOB_ID $(date +%s.%N)" >> {log}
echo $$ > pid
until test -e {go}; do sleep 0.02; done
echo "end $BALSAM_JOB_ID $(date +%s.%N)" >> {log}
touch done
"""


class Runs:
    """Long jobs of all kinds, and what they noted.

    Attributes:
        jobs: The jobs.
    """

    def __init__(self, db: Database, folder: Path) -> None:
        self._db = db
        self._log = folder / "runs.log"
        self._go = folder / "go"
        self.jobs: list[Job] = []

    def add_long_jobs(self, copies: int = 1) -> None:
        """Add a job of each kind, so many times."""
        script = _WORK.format(log=self._log, go=self._go)
        work = shlex.join(["sh", "-c", script])
        for number in range(copies):
            for name, tree in TREES.items():
                command = shlex.join(["bash", "-c", tree.replace("{work}", work)])
                self.jobs.append(Job(command=command, name=f"{name} {number}"))
        self._db.jobs.add(self.jobs)

    def wait_for_start(self) -> list[int]:
        """Wait until all do their work; return their process ids."""
        files = [self._db.workdir(job) / "pid" for job in self.jobs]
        wait_until(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files), "the jobs' start")
        return [int(file.read_text()) for file in files]

    def let_end(self) -> None:
        """Let all end when they are where they wait."""
        self._go.touch()

    def unfinished(self) -> dict[str, str]:
        """Return the states of those that have not finished."""
        ids = {job.id for job in self.jobs}
        return {job.name: str(job.state) for job in self._db.jobs if job.id in ids and job.state != "JOB_FINISHED"}

    def overlaps(self) -> list[tuple[str, list[tuple[float, str]]]]:
        """Return the jobs of which two runs were at work at the same time, or two have ended."""
        lines = [line.split() for line in self._log.read_text().splitlines()]
        found = []
        for job in self.jobs:
            mine = sorted((float(at), kind) for kind, number, at in lines if number == str(job.id))
            kinds = [kind for _, kind in mine]
            if kinds.count("end") != 1 or kinds[-1] != "end" or ("end", "begin") in pairwise(kinds):
                found.append((job.name, mine))
        return found
