"""What ``balsam log`` shows: the files of a job, of a launcher or of the server, and when nothing more will come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from balsam_core.dbdir.launcher_journal import Journal
from balsam_core.dbdir.launcher_logs import log_file
from balsam_core.dbdir.workdirs import output_name
from balsam_core.errors import NotFound
from balsam_core.launcher.job.outputs import outputs_by_attempt
from balsam_core.model.filters import Compare
from balsam_core.model.states import END

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.client.database import Database
    from balsam_core.dbdir.directory import DBDir

STEPS_BEFORE = ("stage_in", "input_files", "preprocess")  # each has a log of its own
STEPS_AFTER = ("postprocess", "stage_out")
_LAUNCHER_LOG = re.compile(r"launcher-(\d{1,18})\.log")
_OF_LAUNCHER = "launcher"


class LogSource(Protocol):
    """Files that are shown together.

    Attributes:
        what: What they are of, for messages.
        paths: The files in the order of showing; some may come later, or never.
        remark: What else there is to see, for people; empty for nothing.
    """

    what: str
    paths: list[Path]
    remark: str

    def is_over(self) -> bool:
        """Whether nothing more will be written."""


class JobSource:
    """What a job and its hooks print: the last attempt that wrote each file, or one attempt."""

    def __init__(self, db: Database, job_id: int, attempt: int | None = None) -> None:
        self._db = db
        self._job_id = job_id
        job = db.jobs.get(job_id)
        workdir = db.workdir(job)
        names = [output_name(job, ".log", stem=step) for step in STEPS_BEFORE]
        names += [output_name(job, ending) for ending in (".out", ".err")]
        names += [output_name(job, ".log", stem=step) for step in STEPS_AFTER]
        self.what = f"job {job_id} ({job.state})"
        self.paths = [workdir / name for name in names]
        self.remark = ""
        attempts = outputs_by_attempt(job, workdir, names)
        if attempt is not None:
            if attempt not in attempts:
                there = f"there is some of: {', '.join(map(str, attempts))}" if attempts else "there is none of any"
                raise NotFound(f"job {job_id} has no output of attempt {attempt}; {there}")
            self.paths = attempts[attempt]
        elif any(path not in self.paths for files in attempts.values() for path in files):
            self.remark = f"attempts with output: {', '.join(map(str, attempts))}; --attempt N shows one"

    def is_over(self) -> bool:
        """Whether the job has ended, and no launcher holds it any more."""
        rows = list(self._db.jobs.where(Compare("id", "eq", self._job_id)).rows("state", "launcher_id"))
        return not rows or (rows[0][0] in END and rows[0][1] is None)


class LauncherSource:
    """The log of a launcher."""

    remark = ""

    def __init__(self, directory: DBDir, number: int | None) -> None:
        found = [_LAUNCHER_LOG.fullmatch(path.name) for path in directory.log.iterdir()]
        numbers = {int(match[1]) for match in found if match}
        if not numbers:
            raise NotFound("no launcher has run yet: balsam launcher --consume-all")
        self._number = max(numbers) if number is None else number
        if self._number not in numbers:
            raise NotFound(f"there is no log of a launcher {number}; the newest is that of launcher {max(numbers)}")
        self._directory = directory
        self.what = f"launcher {self._number}"
        self.paths = [log_file(directory, self._number)]

    def is_over(self) -> bool:
        """Whether the launcher has ended; of one that was killed on another machine that can't be told."""
        head = Journal(self._directory, self._number).head
        return head is None or (head.is_here and not head.is_alive_here)


class ServerSource:
    """The newest logs of the server: the watchdog's, and those of what it runs."""

    remark = ""

    def __init__(self, directory: DBDir) -> None:
        newest: dict[str, Path] = {}
        logs = [path for path in directory.log.glob("*.log") if not path.name.startswith(_OF_LAUNCHER)]
        for path in sorted(logs, key=lambda path: path.stat().st_mtime):
            newest[re.split(r"[_-]", path.stem, maxsplit=1)[0]] = path
        if not newest:
            raise NotFound("no server has run yet: balsam dbserver")
        self._directory = directory
        self.what = "the server"
        self.paths = [newest[kind] for kind in sorted(newest)]

    def is_over(self) -> bool:
        """Whether no server runs."""
        from balsam_core.watchdog.control import describe

        return describe(self._directory).state not in {"running", "starting", "stopping", "unwatched"}
