"""Taking the lease of a DB directory: of many who try, one gets it, and never from a living holder.

The lock makes the usual case orderly and is not relied on. A dead lease is renamed aside, and looked at again under its
new name: if it is not what was judged dead, it is put back. Only then is the new one linked in its place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import TYPE_CHECKING

import msgspec

from balsam_core.errors import Conflict
from balsam_core.system.files import force_to_disk, give_to_owner, shown
from balsam_core.system.processes import descendants, end_process, is_alive, send_signal, this_machine
from balsam_core.watchdog.lease import HeldLease, LeaseState, encoded, lease_file, load, locked, parse

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.watchdog.lease import Lease, LeaseObserver, LeaseStatus

__all__ = ["acquire", "check_takeover", "take"]

_LEFTOVER = 60.0  # seconds after which a temporary file is nobody's
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def acquire(db: DBDir, lease: Lease, watch: LeaseObserver, *, takeover: bool = False) -> HeldLease | LeaseStatus:
    """Take the lease if that is allowed now.

    A server that a dead holder of this machine has left behind is ended first.

    Args:
        db: The DB directory.
        lease: From :func:`new_lease`.
        watch: What has looked at the lease so far.
        takeover: Whether the lease of a dead machine may be taken where that could destroy data.

    Returns:
        The lease, or why not: a sighting that is alive, or unsure, to be looked at again.

    Raises:
        Conflict: The holder's machine is silent, and the lease is not to be taken without ``takeover``.
        SchemaMismatch: A newer Balsam wrote the lease.
        OSError: A file can't be read or written.
    """
    lease = msgspec.structs.replace(lease, directory=db.path.stat().st_ino)
    while True:
        seen = watch.look()
        if not seen.is_takeable:
            return seen
        check_takeover(db, seen, takeover=takeover)
        _end_orphan(db, seen)
        if take(db, lease, seen):
            return HeldLease(db, lease)


def check_takeover(db: DBDir, seen: LeaseStatus, *, takeover: bool) -> None:
    """Refuse to take a lease from another machine where two servers would destroy the data.

    Raises:
        Conflict: It was not asked for in so many words.
    """
    lease = seen.lease
    if takeover or seen.state is not LeaseState.SILENT or lease is None:
        return
    if lease.exclusive and lease.node != this_machine().node:
        raise Conflict(
            f"{shown(db.path)} is held by a server on {lease.node}, which is silent, and two servers would destroy the "
            f"data: make sure that the one on {lease.node} is dead, then use --takeover"
        )


def take(db: DBDir, lease: Lease, judged: LeaseStatus) -> bool:
    """Put the lease in the place of what was judged takeable; say whether that worked.

    Args:
        db: The DB directory.
        lease: The new lease.
        judged: What was seen there: nothing, or a dead lease. If it is something else by now, that stays.

    Raises:
        OSError: A file can't be read or written.
    """
    stem = f".dbserver.lease.{lease.token}"
    temporary, aside = db.path / f"{stem}.tmp", db.path / f"{stem}.stale"
    _write(temporary, encoded(lease))
    try:
        with locked(db):
            if judged.state is not LeaseState.FREE and not _set_aside(db, judged, aside):
                return False
            if not _place(temporary, lease_file(db)):
                return False
    finally:
        for leftover in (temporary, aside):
            leftover.unlink(missing_ok=True)
    force_to_disk(db.path)
    _sweep(db)
    return True


def _set_aside(db: DBDir, judged: LeaseStatus, aside: Path) -> bool:
    """Rename the lease away; if it turns out to be another one than the judged, put it back and say no."""
    try:
        if not _is_judged(db, lease_file(db), judged):
            return False
        lease_file(db).rename(aside)
        if _is_judged(db, aside, judged):
            return True
    except FileNotFoundError:  # another one was quicker
        return False
    _place(aside, lease_file(db))
    return False


def _is_judged(db: DBDir, path: Path, judged: LeaseStatus) -> bool:
    """Say whether a file is the lease that was judged, and whether its heart is as silent as it was then."""
    data, beaten = load(path)
    found = parse(db, data)
    same = found.token == judged.lease.token if found and judged.lease else data == judged.data
    return same and (judged.state is LeaseState.DEAD or beaten == judged.beaten)


def _place(temporary: Path, target: Path) -> bool:
    """Give the finished file its name if that is free, and say whether it was."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        # A file server that repeats a request whose answer was lost reports the success as a failure.
        return temporary.stat().st_nlink == 2  # noqa: PLR2004
    except OSError as err:
        if err.errno not in _NO_HARD_LINKS:
            raise
    else:
        return True
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    # No hard links: a reader may find the file half written, which is no lease, but not silent either.
    with open(descriptor, "wb") as file:  # noqa: PTH123  (a descriptor, not a path)
        file.write(temporary.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    return True


def _end_orphan(db: DBDir, seen: LeaseStatus) -> None:
    """End the server that a dead holder left running on this machine.

    Raises:
        Conflict: It can't be ended.
    """
    lease = seen.lease
    if seen.state is not LeaseState.DEAD or lease is None or not lease.child_pid:
        return
    children = descendants(lease.child_pid) if is_alive(lease.child_pid, lease.child_start) else []
    for pid, start in children:  # the server would wait for frozen ones
        send_signal(pid, start, signal.SIGCONT)
    if not end_process(lease.child_pid, lease.child_start, lease.stop):
        raise Conflict(
            f"the server of {shown(db.path)}, process {lease.child_pid}, has lost its watchdog and can't be ended: "
            f"end it by hand, or ask the user who started it"
        )
    for pid, start in children:  # they would keep the next server out
        end_process(pid, start, ())


def _write(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:  # noqa: PTH123
        try:
            give_to_owner(file.fileno(), path.parent)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError as err:
            err.filename = os.fspath(path)  # the system names no file when a write fails
            raise


def _sweep(db: DBDir) -> None:
    """Remove what killed processes left half-written beside the lease and the address."""
    with contextlib.suppress(OSError), os.scandir(db.path) as found:
        now = lease_file(db).stat().st_mtime
        for entry in found:
            ours = entry.name.startswith((".dbserver.", ".dbwriter_address."))
            if ours and entry.name.endswith((".tmp", ".stale")):
                with contextlib.suppress(FileNotFoundError):
                    if now - entry.stat().st_mtime > _LEFTOVER:
                        os.unlink(entry.path)  # noqa: PTH108
