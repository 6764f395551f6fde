"""``log/launcher-N.json``: what launcher N says of itself while it runs: where it is, and which jobs it can run.

Others read it to tell whether its process lives, and why it doesn't take a job. The database knows when it was last
heard of. A launcher that was killed leaves the file; the next one on the same machine removes it.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from balsam_core.system.files import atomic_write, read_regular
from balsam_core.system.processes import Machine, is_alive, this_machine

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir

_MAX_BYTES = 32 * 1024 * 1024  # a job file may name a million jobs
_NAME = re.compile(r"launcher-(\d{1,18})\.json")
_LOG_NAME = re.compile(r"launcher-(\d{1,18})\.log(?:\.\d+)?")
KEPT_LOGS = 100  # of launchers that have ended


class LauncherFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a launcher says of itself.

    Attributes:
        id: Its id in the database.
        machine: Where it runs: host, boot and namespace of process ids.
        pid: Its process there.
        start: When that started, as :func:`~balsam_core.system.processes.start_of` says.
        background: Whether it was started with ``--daemon``.
        workflow: The only workflow whose jobs it runs; empty for all.
        only: The only jobs that it runs; None for all.
        nodes: Nodes that it can give one job.
        ranks_per_node: Processes on one node.
        gpus_per_node: GPUs on one node.
        ends_at: When its time is over; None for no limit.
    """

    id: int
    machine: Machine
    pid: int
    start: float
    background: bool = False
    workflow: str = ""
    only: list[int] | None = None
    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: float = 0
    ends_at: datetime | None = None

    @property
    def is_here(self) -> bool:
        """Whether this process could see the launcher's process."""
        return self.machine == this_machine()

    @property
    def is_dead(self) -> bool:
        """Whether the launcher's process is gone beyond doubt."""
        return self.is_here and not is_alive(self.pid, self.start)


def log_file(db: DBDir, launcher: int) -> Path:
    """Return the path of a launcher's log."""
    return db.log / f"launcher-{launcher}.log"


def prune_logs(db: DBDir, living: Collection[int]) -> None:
    """Remove the logs of launchers that have ended, but for the :data:`KEPT_LOGS` that were written last.

    Args:
        db: The DB directory.
        living: Ids of the launchers that may not have ended; others are spared for which the launcher's file says so.

    Raises:
        OSError: The folder can't be read.
    """
    spared = {*living, *(found.id for found in read_all(db) if not found.is_dead)}
    files: dict[int, list[os.DirEntry[str]]] = {}
    with os.scandir(db.log) as entries:
        for entry in entries:
            if (match := _LOG_NAME.fullmatch(entry.name)) and int(match[1]) not in spared:
                files.setdefault(int(match[1]), []).append(entry)

    def written_at(launcher: int) -> float:
        return max(entry.stat(follow_symlinks=False).st_mtime for entry in files[launcher])

    for launcher in sorted(files, key=written_at, reverse=True)[KEPT_LOGS:]:
        for entry in files[launcher]:
            with suppress(OSError):
                os.unlink(entry)  # noqa: PTH108


def write(db: DBDir, content: LauncherFile) -> None:
    """Write the file of a launcher.

    Raises:
        OSError: It can't be written.
    """
    atomic_write(_path(db, content.id), msgspec.json.encode(content))


def read(db: DBDir, launcher: int) -> LauncherFile | None:
    """Read the file of a launcher; None where there is none that can be understood."""
    try:
        found = msgspec.json.decode(read_regular(_path(db, launcher), limit=_MAX_BYTES), type=LauncherFile)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return found if found.id == launcher else None


def remove(db: DBDir, launcher: int) -> None:
    """Remove the file of a launcher, where there is one."""
    with suppress(OSError):
        _path(db, launcher).unlink()


def read_all(db: DBDir) -> list[LauncherFile]:
    """Read the files of all launchers, by id."""
    matches = [_NAME.fullmatch(path.name) for path in db.log.glob("launcher-*.json")]
    ids = sorted(int(match[1]) for match in matches if match)
    return [found for found in (read(db, launcher) for launcher in ids) if found is not None]


def remove_of_the_dead(db: DBDir) -> None:
    """Remove the files of launchers whose processes are gone."""
    for found in read_all(db):
        if found.is_dead:
            remove(db, found.id)


def _path(db: DBDir, launcher: int) -> Path:
    return db.log / f"launcher-{launcher}.json"
