"""``dbserver.lease``: the file whose holder alone may run the server of a DB directory.

It is made by ``link()``, which one of many wins on every file system, and refreshed every few seconds. A holder on this
machine (same boot, same process ids) is looked up as a process, and is dead as soon as that is gone. Any other holder
is given up when the file was not refreshed for :data:`EXPIRY`, by the file system's own clock or by observation. A
holder reads the file before each refresh; when it finds another token, or no file, it was replaced and stops.

The lease is advisory; the epoch in the database is the fencing token. A process may be suspended between its check of
the lease and its write, and only the database can refuse that write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from balsam_core.dbdir.address import is_copied
from balsam_core.errors import SchemaMismatch
from balsam_core.system.files import atomic_write, read_with_status, shown
from balsam_core.system.locks import best_effort_lock
from balsam_core.system.processes import is_alive, start_of, this_machine

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir

FORMAT = 1  # of the file; a program refuses a newer one
HEARTBEAT = 3.0  # seconds between two refreshes
EXPIRY = 15.0  # seconds without a refresh, after which a holder that can't be looked up counts as dead
_MAX_BYTES = 64 * 1024
_NOT_A_LEASE = {errno.ELOOP, errno.EINVAL, errno.EFBIG}


class Lease(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Who may run the server of a DB directory.

    Process starts are those of :func:`balsam_core.system.processes.start_of`.

    Attributes:
        format: Version of the file's layout.
        token: 32 hexadecimal digits that no other lease has.
        node: Host name of the holder's machine.
        boot_id: That machine's boot id.
        pid_namespace: The namespace of the process ids.
        pid: The holder, a watchdog or for moments another Balsam program.
        start: When the holder's process started.
        child_pid: The server, 0 while there is none.
        child_start: When the server's process started.
        generation: Number of the holder's last publication in ``dbwriter_address``, 0 before the first; ``epoch`` in
            the file.
        started: When the holder took the lease, seconds since 1970.
        restarts: How often the server was started again since then.
        failure: Why it had to be, the last time; empty once it has worked for a while.
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
    generation: int = msgspec.field(default=0, name="epoch")
    started: float = 0.0
    restarts: int = 0
    failure: str = ""
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


class LeaseState(Enum):
    """What is known about a lease."""

    FREE = "free"  # there is none
    ALIVE = "alive"  # its holder lives: the process is there, or a refresh was observed
    UNSURE = "unsure"  # its holder can't be looked up, and the last refresh is more recent than the expiry
    DEAD = "dead"  # its holder, a process of this machine, is gone
    EXPIRED = "expired"  # its holder can't be looked up, and the lease was not refreshed in time


@dataclass(frozen=True, kw_only=True)
class LeaseStatus:
    """A lease as it was found.

    Attributes:
        state: What is known about it.
        lease: What it says; None when there is none or it can't be understood.
        data: The file's content.
        last_heartbeat: When it was refreshed, nanoseconds by the file system's clock.
        age: Seconds since then; None where that can't be told or doesn't matter.
    """

    state: LeaseState
    lease: Lease | None = None
    data: bytes = b""
    last_heartbeat: int = 0
    age: float | None = None

    @property
    def is_available(self) -> bool:
        """Whether the lease may be taken."""
        return self.state is LeaseState.FREE or self.is_left_behind

    @property
    def is_left_behind(self) -> bool:
        """Whether its holder is dead, or given up as such."""
        return self.state in {LeaseState.DEAD, LeaseState.EXPIRED}


def lease_file(db: DBDir) -> Path:
    """Return where the lease is."""
    return db.path / "dbserver.lease"


class LeaseObserver:
    """Reads the lease of a DB directory again and again, and so notices whether it is being refreshed."""

    def __init__(self, db: DBDir) -> None:
        self._db = db
        self._previous: tuple[object, int] | None = None  # identity and heartbeat
        self._unchanged_since = 0.0

    def observe(self) -> LeaseStatus:
        """Return the lease as it is now.

        Raises:
            SchemaMismatch: A newer Balsam wrote it.
            OSError: It can't be read.
        """
        try:
            lease, data, heartbeat = read_lease(lease_file(self._db))
        except FileNotFoundError:
            self._previous = None
            return LeaseStatus(state=LeaseState.FREE)
        if lease is None or not lease.is_of_this_machine:
            age = _seconds_since(self._db, heartbeat)
            state = self._judge_heartbeat(lease.token if lease else data, heartbeat, age)
            return LeaseStatus(state=state, lease=lease, data=data, last_heartbeat=heartbeat, age=age)
        if is_copied(self._db, lease.directory):
            # Nobody holds it. Its process serves the original and must be left alone: it is not passed on.
            return LeaseStatus(state=LeaseState.EXPIRED, data=data, last_heartbeat=heartbeat)
        state = LeaseState.ALIVE if is_alive(lease.pid, lease.start) else LeaseState.DEAD
        return LeaseStatus(state=state, lease=lease, data=data, last_heartbeat=heartbeat)

    def _judge_heartbeat(self, identity: object, heartbeat: int, age: float | None) -> LeaseState:
        previous, self._previous = self._previous, (identity, heartbeat)
        if previous != self._previous:
            self._unchanged_since = time.monotonic()
            if previous is not None and previous[0] == identity:
                return LeaseState.ALIVE
        elif time.monotonic() - self._unchanged_since > EXPIRY:  # the file system's clock may be wrong
            return LeaseState.EXPIRED
        return LeaseState.EXPIRED if age is not None and age > EXPIRY else LeaseState.UNSURE


class HeldLease:
    """The lease in the hands of its holder.

    Attributes:
        lease: What the file says, or will say as soon as it can be written.
    """

    def __init__(self, db: DBDir, lease: Lease) -> None:
        self.lease = lease
        self._unwritten = False
        self._db = db
        self._file = lease_file(db)

    def is_ours(self) -> bool:
        """Read the file and say whether it is still this lease.

        Raises:
            OSError: It can't be told now.
        """
        try:
            found, _, _ = read_lease(self._file)
        except (FileNotFoundError, SchemaMismatch):
            return False
        return found is not None and found.token == self.lease.token

    def refresh(self) -> bool:
        """Show that the holder lives; say whether the lease is still this one. Changes that failed are tried again.

        Raises:
            OSError: It can't be told now.
        """
        if not self.is_ours():
            return False
        # Without a time of ours: a file server then sets its own. To refresh another holder's lease is harmless.
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._file)
        with contextlib.suppress(OSError):  # the disk is still full, which takes the lease from nobody
            return self.update() if self._unwritten else True
        return True

    def update(self, **changes: object) -> bool:
        """Change what the file says; say whether the lease was still this one, else the file was not changed.

        Raises:
            OSError: The file can't be read or written now; :meth:`refresh` tries again.
        """
        self.lease = msgspec.structs.replace(self.lease, **changes)
        self._unwritten = True
        # Where file locks work, the lock keeps others from taking the lease between the check and the write.
        with lease_lock(self._db):
            if not self.is_ours():
                return False
            atomic_write(self._file, encode_lease(self.lease))
        self._unwritten = False
        return True

    def release(self) -> None:
        """Remove the lease if it is still this one.

        Raises:
            OSError: It can't be read or removed.
        """
        with lease_lock(self._db):
            if self.is_ours():
                self._file.unlink(missing_ok=True)


def new_lease(**members: object) -> Lease:
    """Return a lease of this process with a new token, in memory only."""
    pid = os.getpid()
    return Lease(
        token=os.urandom(16).hex(),
        **this_machine()._asdict(),
        pid=pid,
        start=start_of(pid) or 0.0,
        started=time.time(),
        **members,  # type: ignore[arg-type]
    )


def restarted(lease: Lease | None) -> str:
    """Return in words that a server has failed lately, to be appended to a message; empty where it hasn't."""
    if lease is None or not lease.failure:
        return ""
    failure = "".join(char if char.isprintable() else "?" for char in lease.failure)
    times = "once" if lease.restarts == 1 else f"{lease.restarts} times"
    return f"; it was started again {times}; last: it {failure}"


def lease_lock(db: DBDir) -> AbstractContextManager[None]:
    """Hold the lock under which the lease is changed, where there are locks."""
    return best_effort_lock(db.path / ".dbserver.lock")


def encode_lease(lease: Lease) -> bytes:
    """Return what the file holds."""
    return msgspec.json.format(msgspec.json.encode(lease), indent=2) + b"\n"


_decode = msgspec.json.Decoder(Lease).decode


def read_lease(path: Path) -> tuple[Lease | None, bytes, int]:
    """Read a lease; to open the file makes a network file system forget what it has cached of it.

    Returns:
        What it says, None for what can't be understood; the file's content; its last heartbeat in nanoseconds.

    Raises:
        SchemaMismatch: A newer Balsam wrote it.
        OSError: It can't be read.
    """
    try:
        data, status = read_with_status(path, limit=_MAX_BYTES, follow=False)
    except OSError as err:
        if err.errno in _NOT_A_LEASE:
            raise OSError(err.errno, f"{err.strerror}: remove it", os.fspath(path)) from None
        raise
    try:
        lease = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, data, status.st_mtime_ns
    if lease.format > FORMAT:
        raise SchemaMismatch(f"{shown(path)} has format {lease.format}, this Balsam knows {FORMAT}: upgrade with pip")
    return lease, data, status.st_mtime_ns


def _seconds_since(db: DBDir, moment: int) -> float | None:
    """Return the age of a file's time by the clock that gave it; None where no file can be made."""
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
