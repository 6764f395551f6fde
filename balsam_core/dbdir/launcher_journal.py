"""The journal of a launcher, ``log/launcher-N.journal``: what others need when it has died.

Its lines: ``head`` and a JSON document, which says where its processes are; ``ran JOB ATTEMPT CODE WHY`` for each run
that has ended, of which the database may not know yet; ``farewell`` when all processes are gone. The launcher writes
the head, its guardian and keepers the rest. A launcher that ends well removes its journal; one whose guardian was lost
makes a new one, for the next guardian.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from balsam_core.errors import DBDirError
from balsam_core.system.files import give_to_owner, reason, shown
from balsam_core.system.processes import Machine, start_of, this_machine
from balsam_core.system.shortages import shortage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir

MARK = "BALSAM_LAUNCHER_MARK"
"""Environment variable of a launcher's guardian, its keepers and all processes of its jobs."""

_FAREWELL = b"\nfarewell\n"
_LONGEST_HEAD = 4096  # bytes
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where the processes of a launcher are.

    Attributes:
        machine: Where the process ids are valid.
        launcher: The launcher's process id.
        launcher_start: When it started, as :func:`~balsam_core.system.processes.start_of` tells.
        guardian: Its guardian's process id.
        guardian_start: When that started.
        mark: The value of :data:`MARK`.
    """

    machine: Machine
    launcher: int
    launcher_start: float
    guardian: int
    guardian_start: float
    mark: str


class Run(NamedTuple):
    """A run of a job that ended by itself."""

    job: int
    attempt: int
    exit_code: int


def journal_path(directory: DBDir, launcher: int) -> Path:
    """Return the file of a launcher's journal."""
    return directory.log / f"launcher-{launcher}.journal"


class OwnJournal:
    """The journal of the launcher that this process is."""

    def __init__(self, directory: DBDir, launcher: int) -> None:
        self._path = journal_path(directory, launcher)
        self._descriptor = -1

    def make(self) -> int:
        """Make the file, for a guardian that is about to be started; return a descriptor that appends to it.

        Raises:
            DBDirError: It can't be made.
            NoResources: The system lacks what that takes.
        """
        self.close()
        try:
            self._path.unlink(missing_ok=True)  # also of an earlier launcher with this id: a database was restored
            self._descriptor = os.open(self._path, _NEW_FILE, 0o600)
            give_to_owner(self._descriptor, self._path.parent)
        except OSError as err:
            self.close()
            what = f"can't make {shown(self._path)}, without which no job is run"
            raise shortage(err) or DBDirError(f"{what}: {reason(err)}") from err
        return self._descriptor

    def write_head(self, guardian: int, mark: str) -> None:
        """Write where this launcher's processes are.

        Raises:
            DBDirError: It can't be written.
        """
        pid = os.getpid()
        head = Head(
            machine=this_machine(),
            launcher=pid,
            launcher_start=start_of(pid) or 0.0,
            guardian=guardian,
            guardian_start=start_of(guardian) or 0.0,
            mark=mark,
        )
        line = b"head " + json.dumps(asdict(head)).encode() + b"\n"
        try:
            written = os.write(self._descriptor, line)
        except OSError as err:
            raise shortage(err) or DBDirError(f"can't write {shown(self._path)}: {reason(err)}") from err
        if written != len(line):
            raise DBDirError(f"can't write {shown(self._path)}: the disk is full")

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Journal:
    """The journal of a launcher, as others read it; a file that is missing or damaged says nothing.

    Attributes:
        head: Where its processes are; None where that was never written.
        has_farewell: Whether the guardian has seen the end of the launcher and of all processes.
    """

    def __init__(self, directory: DBDir, launcher: int) -> None:
        self._path = journal_path(directory, launcher)
        self.head: Head | None = None
        self.has_farewell = False
        with contextlib.suppress(OSError), self._open() as file:
            kind, _, document = file.readline(_LONGEST_HEAD).partition(b" ")
            if kind == b"head":
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    fields = json.loads(document)
                    self.head = Head(**{**fields, "machine": Machine(*fields["machine"])})
            file.seek(max(0, os.fstat(file.fileno()).st_size - len(_FAREWELL)))
            self.has_farewell = file.read() == _FAREWELL

    def _open(self) -> BinaryIO:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        return open(descriptor, "rb")  # noqa: PTH123  (a descriptor, not a path)

    def runs(self) -> Iterator[Run]:
        """Give the runs that ended by themselves."""
        with contextlib.suppress(OSError), self._open() as file:
            for line in file:
                words = line.split()
                if len(words) == 5 and words[0] == b"ran" and words[4] == b"itself":  # noqa: PLR2004
                    with contextlib.suppress(ValueError):
                        yield Run(*map(int, words[1:4]))

    def remove(self) -> None:
        """Remove it, for a launcher that has ended; a file that can't be removed does no harm."""
        with contextlib.suppress(OSError):
            self._path.unlink()
