"""``dbserver.lease``: the file whose holder alone may run the server of a DB directory.

It is made by ``link()``, which one of many wins on every file system, and refreshed every few seconds. Who it names is
judged dead at once where the process can be looked at (same machine, boot and process ids), and elsewhere only when the
heartbeat has been missing for :data:`EXPIRY`, by the file system's own clock or by watching. A holder reads the file
before each refresh; one that finds another token in it, or no file, was replaced and stops.

The lease keeps honest programs apart; it is no fence. A process that is frozen between its look and its deed needs the
number that the database itself checks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from balsam_core.dbdir.address import is_copied
from balsam_core.errors import SchemaMismatch
from balsam_core.system.files import atomic_write, shown
from balsam_core.system.locks import best_effort_lock
from balsam_core.system.processes import is_alive, start_of, this_machine

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir

__all__ = [
    "EXPIRY",
    "HEARTBEAT",
    "HeldLease",
    "Lease",
    "LeaseObserver",
    "LeaseState",
    "LeaseStatus",
    "encoded",
    "lease_file",
    "load",
    "locked",
    "new_lease",
    "parse",
]

FORMAT = 1  # of the file; a program refuses a newer one
HEARTBEAT = 3.0  # seconds between two refreshments
EXPIRY = 15.0  # seconds without one, after which a holder that can't be looked at counts as dead
_LARGEST = 64 * 1024  # bytes


class Lease(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Who may run the server of a DB directory.

    Starts are those of :func:`balsam_core.system.processes.start_of`.

    Attributes:
        format: Version of the file's layout.
        token: 32 hexadecimal digits that no other lease has.
        node: Host name of the holder's machine.
        boot_id: That machine's boot id.
        pid_namespace: What the process ids are counted in.
        pid: The holder, a watchdog or for moments another Balsam program.
        start: When it started.
        child_pid: The server, 0 while there is none.
        child_start: When that started.
        epoch: Number of the holder's last publication in ``dbwriter_address``, 0 before the first.
        started: When the holder took the lease, seconds since the epoch.
        restarts: How often the server was started again since.
        listen: What the server listens on, as the user said it.
        port: The port that the user fixed, 0 for none.
        tls: Whether connections from other hosts must be encrypted.
        stop: Signals that end the server in turn, with the seconds that each may take.
        directory: Inode of the DB directory; a copy of it has the file, but no server.
        exclusive: Whether two servers would destroy the data, so that a dead machine's lease is taken only on request.
    """

    format: int = FORMAT
    token: str
    node: str
    boot_id: str
    pid_namespace: int
    pid: int
    start: float
    child_pid: int = 0
    child_start: float = 0.0
    epoch: int = 0
    started: float = 0.0
    restarts: int = 0
    listen: str = ""
    port: int = 0
    tls: bool = True
    stop: list[tuple[int, float]] = []
    exclusive: bool = False
    directory: int = 0

    @property
    def is_of_this_machine(self) -> bool:
        """Whether its process ids can be looked up here."""
        return (self.node, self.boot_id, self.pid_namespace) == this_machine()

    @property
    def stop_time(self) -> float:
        """Seconds that the server may take to stop."""
        return sum(seconds for _, seconds in self.stop)


class LeaseState(Enum):
    """What is known about a lease."""

    FREE = "free"
    """There is none."""
    ALIVE = "alive"
    """Its holder lives: the process is there, or its heartbeat was seen."""
    UNSURE = "unsure"
    """Its holder can't be looked at and the heartbeat is younger than the expiry."""
    DEAD = "dead"
    """Its holder, a process of this machine, is gone."""
    SILENT = "silent"
    """Its holder can't be looked at, and the heartbeat has expired."""


@dataclass(frozen=True, kw_only=True)
class LeaseStatus:
    """A lease as it was found.

    Attributes:
        state: What is known about it.
        lease: What it says; None when there is none or it can't be understood.
        data: The file's content.
        beaten: Its last heartbeat, nanoseconds, by the file system's clock.
        age: Seconds since then; None where that can't be told or doesn't matter.
    """

    state: LeaseState
    lease: Lease | None = None
    data: bytes = b""
    beaten: int = 0
    age: float | None = None

    @property
    def is_takeable(self) -> bool:
        """Whether the lease may be taken."""
        return self.state in {LeaseState.FREE, LeaseState.DEAD, LeaseState.SILENT}


_decode = msgspec.json.Decoder(Lease).decode


def lease_file(db: DBDir) -> Path:
    """Return where the lease is."""
    return db.path / "dbserver.lease"


class LeaseObserver:
    """Looks at the lease of a DB directory and remembers what it saw, to tell a beating heart from a silent one."""

    def __init__(self, db: DBDir) -> None:
        self._db = db
        self._seen: tuple[object, int] | None = None
        self._since = 0.0

    def look(self) -> LeaseStatus:
        """Return the lease as it is now.

        Raises:
            SchemaMismatch: A newer Balsam wrote it.
            OSError: It can't be read.
        """
        try:
            data, beaten = load(lease_file(self._db))
        except FileNotFoundError:
            self._seen = None
            return LeaseStatus(state=LeaseState.FREE)
        lease = parse(self._db, data)
        if lease is not None and lease.is_of_this_machine and is_copied(self._db, lease.directory):
            # Nobody's, but of a living stranger who must be left alone.
            return LeaseStatus(state=LeaseState.SILENT, data=data, beaten=beaten)
        if lease is not None and lease.is_of_this_machine:
            state = LeaseState.ALIVE if is_alive(lease.pid, lease.start) else LeaseState.DEAD
            return LeaseStatus(state=state, lease=lease, data=data, beaten=beaten)
        age = _age(self._db, beaten)
        state = self._judge(lease.token if lease else data, beaten, age)
        return LeaseStatus(state=state, lease=lease, data=data, beaten=beaten, age=age)

    def _judge(self, token: object, beaten: int, age: float | None) -> LeaseState:
        before, self._seen = self._seen, (token, beaten)
        if before != self._seen:
            self._since = time.monotonic()
            if before is not None and before[0] == token:
                return LeaseState.ALIVE
        elif time.monotonic() - self._since > EXPIRY:  # the clock of the file system may be anything
            return LeaseState.SILENT
        return LeaseState.SILENT if age is not None and age > EXPIRY else LeaseState.UNSURE


class HeldLease:
    """The lease in the hands of its holder.

    Attributes:
        lease: What the file says.
    """

    def __init__(self, db: DBDir, lease: Lease) -> None:
        self.lease = lease
        self._db = db
        self._file = lease_file(db)

    def is_ours(self) -> bool:
        """Read the file and say whether it is still this lease.

        Raises:
            OSError: It can't be told now.
        """
        try:
            data, _ = load(self._file)
            found = parse(self._db, data)
        except (FileNotFoundError, SchemaMismatch):
            return False
        return found is not None and found.token == self.lease.token

    def beat(self) -> bool:
        """Show that the holder lives; say whether the lease is still this one.

        Raises:
            OSError: It can't be told now.
        """
        if not self.is_ours():
            return False
        # Without a time of ours: a file server then sets its own. A stranger's lease would not suffer from it.
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._file)
        return True

    def update(self, **changes: object) -> bool:
        """Change what the file says; say whether the lease was still this one, else nothing was changed.

        Raises:
            OSError: The file can't be read or written.
        """
        changed = msgspec.structs.replace(self.lease, **changes)
        # Between the look and the rename another may take the lease; the lock forbids it where locks are honest.
        with locked(self._db):
            if not self.is_ours():
                return False
            atomic_write(self._file, encoded(changed))
        self.lease = changed
        return True

    def release(self) -> None:
        """Remove the lease if it is still this one.

        Raises:
            OSError: It can't be read or removed.
        """
        with locked(self._db):
            if self.is_ours():
                self._file.unlink(missing_ok=True)


def new_lease(**members: object) -> Lease:
    """Return a lease of this process with a new token, in memory only."""
    machine = this_machine()
    pid = os.getpid()
    return Lease(
        token=os.urandom(16).hex(),
        node=machine.node,
        boot_id=machine.boot_id,
        pid_namespace=machine.pid_namespace,
        pid=pid,
        start=start_of(pid) or 0.0,
        started=time.time(),
        **members,  # type: ignore[arg-type]
    )


def locked(db: DBDir) -> AbstractContextManager[None]:
    """Hold the lock under which the lease is changed, where there are locks."""
    return best_effort_lock(db.path / ".dbserver.lock")


def encoded(lease: Lease) -> bytes:
    """Return what the file holds."""
    return msgspec.json.format(msgspec.json.encode(lease), indent=2) + b"\n"


def parse(db: DBDir, data: bytes) -> Lease | None:
    """Return what a file says; None for what can't be understood.

    Raises:
        SchemaMismatch: A newer Balsam wrote it.
    """
    try:
        lease = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if lease.format > FORMAT:
        name = shown(lease_file(db))
        raise SchemaMismatch(f"{name} has format {lease.format}, this Balsam knows {FORMAT}: upgrade with pip")
    return lease


def load(path: Path) -> tuple[bytes, int]:
    """Return content and time of a lease; opening it makes a network file system forget what it remembers of it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as err:
        if err.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a symbolic link: remove it", os.fspath(path)) from None
        raise
    with open(descriptor, "rb") as file:  # noqa: PTH123  (a descriptor, not a path)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file: remove it", os.fspath(path))
        return file.read(_LARGEST), status.st_mtime_ns


def _age(db: DBDir, moment: int) -> float | None:
    """Return how long ago a time of a file was, seconds, by the clock that gave it; None where nothing can be made."""
    probe = db.path / f".dbserver.clock.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        return (os.fstat(descriptor).st_mtime_ns - moment) / 1e9
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)
