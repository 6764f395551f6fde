"""The journal of a launcher, ``log/launcher-N.journal``: what others need to know of it, also when it has died.

Its lines: ``head`` and a JSON document, which says where its processes are; ``offer`` and a JSON document, which says
what jobs it can run; ``ran JOB ATTEMPT CODE WHY`` for each run that has ended, of which the database may not know yet;
``farewell`` when all processes are gone. The launcher writes the first two, its guardian and keepers the rest. A
launcher that ends well removes its journal; one whose guardian was lost makes a new one, for the next guardian.
"""

from __future__ import annotations

import contextlib
import os
import re
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import msgspec

from balsam_core.errors import DBDirError
from balsam_core.system.files import reason, shown
from balsam_core.system.permissions import permission_error
from balsam_core.system.processes import Machine, is_alive, start_of, this_machine
from balsam_core.system.shortages import shortage

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir

_T = TypeVar("_T")

MARK = "BALSAM_LAUNCHER_MARK"
"""Environment variable of a launcher's guardian, its keepers and all processes of its jobs."""

_FAREWELL = b"\nfarewell\n"
_LONGEST_HEAD = 4096  # bytes
_LONGEST_OFFER = 32 * 1024 * 1024  # bytes; a job file may name a million jobs
_NAME = re.compile(r"launcher-(\d{1,18})\.journal")
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """Where the processes of a launcher are.

    Attributes:
        machine: Where the process ids are valid.
        launcher: The launcher's process id.
        launcher_start: When it started, as :func:`~balsam_core.system.processes.start_of` tells.
        guardian: Its guardian's process id.
        guardian_start: When that started.
        mark: The value of :data:`MARK`.
        group: The control group of the guardian and of all processes of jobs; empty for none.
    """

    machine: Machine
    launcher: int
    launcher_start: float
    guardian: int
    guardian_start: float
    mark: str
    group: str = ""

    @property
    def is_here(self) -> bool:
        """Whether this process could see the launcher's process."""
        return self.machine == this_machine()

    @property
    def is_alive_here(self) -> bool:
        """Whether the launcher's process is seen to live on this machine."""
        return self.is_here and is_alive(self.launcher, self.launcher_start)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs a launcher runs, and what it has for them.

    Attributes:
        background: Whether it was started with ``--daemon``.
        workflow: The only workflow whose jobs it runs; empty for all.
        only: The only jobs that it runs; None for all.
        nodes: Nodes that it can give one job.
        ranks_per_node: Processes on one node.
        gpus_per_node: GPUs on one node.
        ends_at: When its time is over; None for no limit.
    """

    background: bool = False
    workflow: str = ""
    only: list[int] | None = None
    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: float = 0
    ends_at: datetime | None = None


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

    def __init__(self, directory: DBDir, launcher: int, offer: Offer | None = None) -> None:
        self._path = journal_path(directory, launcher)
        self._offer = offer or Offer()
        self._descriptor = -1
        self._runs = b""  # lines of the journal that this one replaces

    def make(self) -> int:
        """Make the file, for a guardian that is about to be started; return a descriptor that appends to it.

        Raises:
            DBDirError: It can't be made.
            NoResources: The system lacks what that takes.
        """
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                self._runs = b"".join(line for line in self._path.read_bytes().splitlines(True) if line[:4] == b"ran ")
        self.close()
        try:
            self._path.unlink(missing_ok=True)  # also of an earlier launcher with this id: a database was restored
            # It stays its writer's, also in another user's DB: only that user can see and end the processes.
            self._descriptor = os.open(self._path, _NEW_FILE, 0o644)
        except OSError as err:
            self.close()
            what = f"can't make {shown(self._path)}, without which no job is run"
            refusal = permission_error(err, self._path)
            raise shortage(err) or refusal or DBDirError(f"{what}: {reason(err)}") from err
        return self._descriptor

    def write_head(self, guardian: int, mark: str, group: str = "") -> None:
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
            group=group,
        )
        lines = (
            b"head " + msgspec.json.encode(head) + b"\noffer " + msgspec.json.encode(self._offer) + b"\n" + self._runs
        )
        try:
            written = os.write(self._descriptor, lines)
        except OSError as err:
            raise shortage(err) or DBDirError(f"can't write {shown(self._path)}: {reason(err)}") from err
        if written != len(lines):
            raise DBDirError(f"can't write {shown(self._path)}: the disk is full")

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Journal:
    """The journal of a launcher, as others read it; a file that is missing or damaged says nothing.

    Attributes:
        launcher: Which launcher's it is.
        owner: The number of the user who has written it; -1 where there is none.
        head: Where its processes are; None where that was never written.
        has_farewell: Whether the guardian has seen the end of the launcher and of all processes.
    """

    def __init__(self, directory: DBDir, launcher: int) -> None:
        self.launcher = launcher
        self._path = journal_path(directory, launcher)
        self.owner = -1
        self.head: Head | None = None
        self.has_farewell = False
        with contextlib.suppress(OSError), self._open() as file:
            status = os.fstat(file.fileno())
            self.owner = status.st_uid
            self.head = _decode(file.readline(_LONGEST_HEAD), b"head", Head)
            file.seek(max(0, status.st_size - len(_FAREWELL)))
            self.has_farewell = file.read() == _FAREWELL

    @property
    def offer(self) -> Offer | None:
        """What jobs the launcher runs; None where that can't be read."""
        with contextlib.suppress(OSError), self._open() as file:
            file.readline(_LONGEST_HEAD)
            return _decode(file.readline(_LONGEST_OFFER), b"offer", Offer)
        return None

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


def _decode(line: bytes, word: bytes, kind: type[_T]) -> _T | None:
    """Decode the document behind the first word of a line; None where it is another line, or a damaged one."""
    found, _, document = line.partition(b" ")
    if found == word:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            return msgspec.json.decode(document, type=kind)
    return None


def read_journals(directory: DBDir) -> list[Journal]:
    """Read the journals of all launchers that can be read, by launcher."""
    matches = [_NAME.fullmatch(path.name) for path in directory.log.glob("launcher-*.journal")]
    numbers = sorted(int(match[1]) for match in matches if match)
    return [found for found in (Journal(directory, number) for number in numbers) if found.head is not None]


def remove_stale(directory: DBDir, known: Container[int]) -> None:
    """Remove the journals of launchers of this machine that are dead and that the database doesn't have any more."""
    for found in read_journals(directory):
        is_dead = found.head is not None and found.head.is_here and not found.head.is_alive_here
        if is_dead and found.launcher not in known:
            found.remove()
