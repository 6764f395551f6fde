"""Jobs that start processes in every way in which those escape a process group, and that note when they run."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from resources import is_alive

from balsam_core import Job
from balsam_core.backends import registry
from balsam_core.schema.tables import jobs
from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
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
# A run holds a lock until its last process has ended, so that another one beside it is known by the lock.
_WORK = """
exec 9>> lock
flock -n 9 || echo "beside $BALSAM_JOB_ID $(date +%s.%N)" >> {log}
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
        """Wait until all are at work; return their process ids."""
        files = [self._db.workdir(job) / "pid" for job in self.jobs]
        wait_until(lambda: all(map(_is_at_work, files)), "the jobs' start")
        return [int(file.read_text()) for file in files]

    def forgive(self) -> None:
        """Forget how many launchers were lost with them, which else parks them."""
        backend = registry.load(self._db.directory.db_type)
        engine = backend.create_engine(self._db.directory, "owner")
        with engine.begin() as conn:
            conn.execute(sa.update(jobs).values(launchers_lost=0))
        engine.dispose()

    def stored(self) -> list[Job]:
        """Return them as the database has them."""
        ids = {job.id for job in self.jobs}
        return [job for job in self._db.jobs if job.id in ids]

    def let_end(self) -> None:
        """Let all end when they are where they wait."""
        self._go.touch()

    def unfinished(self) -> dict[str, str]:
        """Return the states of those that have not finished."""
        return {job.name: str(job.state) for job in self.stored() if job.state != "JOB_FINISHED"}

    def overlaps(self) -> list[tuple[str, list[tuple[float, str]]]]:
        """Return the jobs of which two runs were there at the same time, or that have not ended once, at last."""
        lines = [line.split() for line in self._log.read_text().splitlines()]
        found = []
        for job in self.jobs:
            mine = sorted((float(at), kind) for kind, number, at in lines if number == str(job.id))
            kinds = [kind for _, kind in mine]
            if "beside" in kinds or kinds.count("end") != 1 or kinds[-1] != "end":
                found.append((job.name, mine))
        return found


def _is_at_work(file: Path) -> bool:
    text = file.read_text() if file.exists() else ""
    return text.endswith("\n") and is_alive(int(text))


def processes_of(db: Database, launcher: int) -> list[int]:
    """Return the processes of the jobs of a launcher, which are known by their environment."""
    marks = {f"BALSAM_DB_PATH={db.path}".encode(), f"BALSAM_LAUNCHER_ID={launcher}".encode()}
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if marks <= set(file.read_bytes().split(b"\0")):
                found.append(int(file.parent.name))
    return found
