"""How the launchers of one user on one machine share its processors and GPUs, whatever DBs they belong to.

They meet in a file for each kind that only their user can open, in ``/tmp/balsam-UID`` or in the directory that
``BALSAM_RUNTIME_DIR`` names. It is not in ``XDG_RUNTIME_DIR``, which batch jobs and daemons don't have: they would not
meet the launchers of a login. The file's name says what is shared: the processors or GPUs of one boot of one machine,
or the time that the quota of one control group allows. The rules are the same for both; here only processors are named.

A byte of the file is locked for each processor that a job has. Launcher and guardian hold these locks together, so that
the kernel frees them when both are gone, and no process of the job is left. Besides, each launcher has a row in the
file, where it tells the others which processors it has and since when it has waited for more. All keep the same rules:

* While no other launcher waits, a launcher takes what is free.
* While one waits, each keeps to its share: the processors divided by the launchers that have or want some, rounded up.
* One that has less than its share, and has waited for :data:`PATIENCE`, has the turn; among several the one that has
  waited longest. The others start nothing on its processors before it has started its first job, which may be one of
  the whole node; but one that had none keeps what it got for :data:`KEEP`, since each change takes a moment.

No job is interrupted. A launcher that is stopped has its turn no longer than :data:`FRESH`.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import struct
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING
from zlib import crc32

from balsam_core.model.cores import MOST_CORES
from balsam_core.system.files import describe_error, reason
from balsam_core.system.filesystems import is_network
from balsam_core.system.hardware import quota_group
from balsam_core.system.processes import this_machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

logger = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds that a launcher waits before the others make room for it
KEEP = 3.0  # seconds that it need not make room for others then
FRESH = 10.0  # seconds that a row's words about waiting count
TELL_EVERY = 1.0  # seconds between two such words
LOOK_EVERY = 0.2  # seconds between two looks for free processors

_BATCH_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "COBALT_JOBID", "JOB_ID")
_MOST_ROWS = 1000
_SET = MOST_CORES // 8  # bytes of a set of processors
_ROW = struct.Struct(f"<dd{_SET}s{_SET}s256s")
_CHANGING = struct.Struct(f"<dd{_SET}s")  # what changes of a row
_PROCESSORS_AT = 1 << 40  # where the bytes begin that stand for processors: behind all rows
_LOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, process


@dataclass(slots=True)
class Row:
    """What a launcher tells the others; sets of processors are the bits of a number.

    Attributes:
        told_at: When it told about waiting, by the monotonic clock.
        waits_since: Since when its first job has waited for processors; 0.0 where it doesn't.
        held: The processors that its jobs have.
        usable: Those that it may use.
        name: Which launcher it is, for people.
    """

    told_at: float
    waits_since: float
    held: int
    usable: int
    name: str = ""

    def pack(self) -> bytes:
        """Return its bytes."""
        return self.pack_changing() + self.usable.to_bytes(_SET, "little") + self.name.encode()[:256].ljust(256, b"\0")

    def pack_changing(self) -> bytes:
        """Return those of its first bytes that change."""
        return _CHANGING.pack(self.told_at, self.waits_since, self.held.to_bytes(_SET, "little"))

    @classmethod
    def unpack(cls, data: bytes) -> Row:
        """Return the row of these bytes."""
        told_at, waits_since, held, usable, name = _ROW.unpack(data)
        held, usable = int.from_bytes(held, "little"), int.from_bytes(usable, "little")
        return cls(told_at, waits_since, held, usable, name.rstrip(b"\0").decode(errors="replace"))


@dataclass(slots=True)
class Limits:
    """What a launcher may take.

    Attributes:
        busy: The processors that are not for it.
        share: How many it may have; infinite where it need not care.
        has_turn: Whether its first job may take more than that.
    """

    busy: int = 0
    share: float = inf
    has_turn: bool = False


def limits(own: Row, others: Iterable[Row], now: float, back_at: float = -inf) -> Limits:
    """Return what a launcher may take while the others tell this, by the rules above.

    Args:
        own: Its own row.
        others: The rows of the others.
        now: The time by the monotonic clock.
        back_at: When it got processors after it had none.
    """
    busy, active, waiting = 0, 1, []
    for other in others:
        busy |= other.held
        if other.usable & own.usable:
            waits = other.waits_since > 0 and abs(now - other.told_at) < FRESH
            active += bool(waits or other.held)
            if waits:
                waiting.append(other)
    if not waiting:
        return Limits(busy)
    share = -(-own.usable.bit_count() // active)
    candidates = [row for row in [own, *waiting] if row.waits_since and row.held.bit_count() < share]
    first = min(candidates, key=lambda row: row.waits_since, default=None)
    if first is None or now - first.waits_since < PATIENCE:
        return Limits(busy, share)
    if first is own:
        return Limits(busy, share, has_turn=True)
    return Limits(busy if now - back_at < KEEP else busy | first.usable, share)


class Shared:
    """The processors, or the GPUs, of a launcher that shares them with others.

    Attributes:
        descriptor: The open file; who inherits it keeps the locks.
        busy: The processors that are not for this launcher now, as the bits of a number.
        used_by: The names of launchers that have some of its processors.

    Args:
        kind: What is shared: the beginning of the file's name.
        cores: Numbers of the processors.
        name: Which launcher it is, for people.

    Raises:
        OSError: The file can't be used; the message says why.
    """

    def __init__(self, kind: str, cores: Sequence[int], name: str) -> None:
        self.descriptor = _open_file(kind)
        self.used_by: list[str] = []
        self._own = Row(0.0, 0.0, 0, as_set(cores), name)
        self._limits = Limits()
        self._back_at = -inf
        self._has_waited = False  # at the last word or the one before
        self._is_out = False  # it has waited with nothing
        self._is_mute = False
        try:
            self._row = next((row for row in range(_MOST_ROWS) if self._lock(row * _ROW.size)), _MOST_ROWS)
            if self._row == _MOST_ROWS:
                raise OSError(errno.EUSERS, f"{_MOST_ROWS} launchers run already")
            os.pwrite(self.descriptor, self._own.pack(), self._row * _ROW.size)
        except OSError:
            self.close()
            raise

    @property
    def busy(self) -> int:
        """The processors that are not for this launcher now, as the bits of a number."""
        return self._limits.busy

    @property
    def allowance(self) -> float:
        """How many more processors it may take."""
        if self._limits.has_turn or self._limits.share == inf:
            return inf
        return max(0.0, self._limits.share - self._own.held.bit_count())

    @property
    def waits(self) -> bool:
        """Whether its first job waits for processors of others."""
        return self._own.waits_since > 0

    def take(self, cores: Iterable[int]) -> bool:
        """Lock processors for a job: all, or none where one has just been taken by another launcher."""
        got: list[int] = []
        for core in cores:
            if not self._lock(_PROCESSORS_AT + core):
                self._limits.busy |= 1 << core
                self.give_back(got)
                return False
            got.append(core)
        now = monotonic()
        if self._has_waited:
            self._own.waits_since = now  # as far as we know, another job waits behind this one
        if self._is_out:
            self._is_out, self._back_at = False, now
        self._own.held |= as_set(got)
        self._limits.has_turn = False
        self._write()
        return True

    def give_back(self, cores: Iterable[int]) -> None:
        """Free the processors of a job."""
        for core in cores:
            self._control(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, _PROCESSORS_AT + core)
            self._own.held &= ~(1 << core)
        self._write()

    def look(self) -> None:
        """Learn what the others have, and who waits."""
        others = self._read_others()
        self._limits = limits(self._own, others, monotonic(), self._back_at)
        self.used_by = [other.name for other in others if other.held & self._own.usable]

    def tell(self, *, waits: bool) -> None:
        """Tell the others whether this launcher's first job waits."""
        own, now = self._own, monotonic()
        self._has_waited = waits or self.waits
        self._is_out = not own.held if waits else self._is_out
        has_share = own.held.bit_count() >= self._limits.share
        since = 0.0 if not waits else now if has_share else own.waits_since or now
        if since != own.waits_since or (waits and now - own.told_at >= TELL_EVERY):
            own.waits_since, own.told_at = since, now
            self._write()

    def close(self) -> None:
        """Let go of everything, unless the guardian holds it as well."""
        os.close(self.descriptor)

    def _write(self) -> None:
        try:
            os.pwrite(self.descriptor, self._own.pack_changing(), self._row * _ROW.size)
        except OSError as err:  # the locks hold without it; only turns may be missed
            if not self._is_mute:
                logger.warning("other launchers can't be told what this one uses: %s", reason(err))
            self._is_mute = True

    def _read_others(self) -> list[Row]:
        size = _ROW.size
        if not self._is_locked(0, _MOST_ROWS * size):
            return []
        data = os.pread(self.descriptor, os.lseek(self.descriptor, 0, os.SEEK_END), 0)
        rows = [row for row in range(len(data) // size) if row != self._row and self._is_locked(row * size)]
        return [Row.unpack(data[row * size : (row + 1) * size]) for row in rows]

    # ---- locks that belong to the open file, not to the process

    def _lock(self, at: int) -> bool:
        try:
            self._control(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, at)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _is_locked(self, at: int, length: int = 1) -> bool:
        """Say whether another launcher has locked something there."""
        return self._control(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, at, length) != fcntl.F_UNLCK

    def _control(self, command: int, kind: int, at: int, length: int = 1) -> int:
        answer = fcntl.fcntl(self.descriptor, command, _LOCK.pack(kind, os.SEEK_SET, at, length, 0))
        return int(_LOCK.unpack(answer)[0])


def as_set(cores: Iterable[int]) -> int:
    """Return processors as the bits of a number."""
    bits = 0
    for core in cores:
        bits |= 1 << core
    return bits


def share_processors(cores: Sequence[int], name: str) -> Shared | None:
    """Share processors with the other launchers of this user here; None where that isn't possible.

    Args:
        cores: Numbers of the processors.
        name: Which launcher it is, for people.
    """
    return _share("-".join(["processors", *quota_group()]), cores, name)


def share_gpus(gpus: Sequence[str], name: str) -> Shared | None:
    """Share GPUs, by their names, with the other launchers of this user here; None where that isn't possible."""
    # A batch job may have numbers of its own for the GPUs that it has been given.
    job = next((os.environ[name] for name in _BATCH_JOBS if os.environ.get(name)), "")
    return _share("-".join(["gpus", *re.findall(r"[A-Za-z0-9]+", job)]), gpu_numbers(gpus), name) if gpus else None


def gpu_numbers(gpus: Iterable[str]) -> list[int]:
    """Return a number for each GPU: its own, or one that is made of its name, the same for every launcher."""
    return [(int(name) if name.isdecimal() else crc32(name.encode())) % MOST_CORES for name in gpus]


def _share(kind: str, numbers: Sequence[int], name: str) -> Shared | None:
    try:
        if not hasattr(fcntl, "F_OFD_SETLK"):
            raise OSError(errno.ENOTSUP, "this system has no locks of open files")
        if len(set(numbers)) < len(numbers):
            raise OSError(errno.ENOTSUP, "two names can't be told apart")
        return Shared(kind, numbers, name)
    except OSError as err:
        what = "%s are not shared with this user's other launchers: %s"
        logger.warning(what, kind.partition("-")[0], describe_error(err))
        return None


def _open_file(kind: str) -> int:
    """Open the file where launchers meet that share the same things."""
    folder = Path(os.environ.get("BALSAM_RUNTIME_DIR") or f"/tmp/balsam-{os.geteuid()}")  # noqa: S108  (checked below)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise OSError(errno.EPERM, "it is no directory that only this user can write to", str(folder))
    if is_network(folder):
        raise OSError(errno.ENOTSUP, "it is on a network file system, where locks can't be relied on", str(folder))
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(folder / f"{kind}-{this_machine().boot_id}", flags, 0o600)
