"""Taking the lease of a DB directory: of many who try, one gets it, and never from a living holder.

The lock avoids most conflicts and is not relied on. A dead lease is renamed aside and read again under its new name: if
it is not the one that was judged dead, it is put back. Only then is the new lease linked in its place.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import msgspec

from balsam_core.dbdir.lease import HeldLease, LeaseState, encode_lease, lease_file, lease_lock, read_lease
from balsam_core.errors import Conflict
from balsam_core.system.files import force_to_disk, rename_new, shown, write_new
from balsam_core.system.processes import descendants, end_process, is_alive, send_signal, this_machine

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.lease import Lease, LeaseObserver, LeaseStatus

_LEFTOVER_AGE = 60.0  # seconds after which a temporary file is nobody's


def acquire(db: DBDir, lease: Lease, observer: LeaseObserver, *, takeover: bool = False) -> HeldLease | LeaseStatus:
    """Take the lease if that is allowed now.

    A server that a dead holder of this machine has left behind is ended first.

    Args:
        db: The DB directory.
        lease: From :func:`~balsam_core.dbdir.lease.new_lease`.
        observer: What has observed the lease so far.
        takeover: Whether the lease of a dead machine may be taken where that could destroy data.

    Returns:
        The lease; or the status of one that is alive, or unsure and to be observed again.

    Raises:
        Conflict: The lease of another machine has expired, and is not to be taken without ``takeover``; or a server
            that was left behind can't be ended.
        SchemaMismatch: A newer Balsam wrote the lease.
        OSError: A file can't be read or written.
    """
    lease = msgspec.structs.replace(lease, directory=db.path.stat().st_ino)
    while True:
        status = observer.observe()
        if not status.is_available:
            return status
        _check_takeover(db, status, takeover=takeover)
        _end_orphan(db, status)
        if take(db, lease, status):
            return HeldLease(db, lease)


def _check_takeover(db: DBDir, status: LeaseStatus, *, takeover: bool) -> None:
    """Refuse to take a lease from another machine where two servers would destroy the data."""
    lease = status.lease
    if takeover or status.state is not LeaseState.EXPIRED or lease is None:
        return
    if lease.exclusive and lease.node != this_machine().node:
        raise Conflict(
            f"{shown(db.path)} is held by a server on {lease.node}, which is silent, and two servers would destroy the "
            f"data: make sure that the one on {lease.node} is dead, then use --takeover"
        )


def take(db: DBDir, lease: Lease, judged: LeaseStatus) -> bool:
    """Put the lease in the place of what was judged available; say whether that worked.

    If there is something else by now, that stays.

    Raises:
        OSError: A file can't be read or written.
    """
    stem = f".dbserver.lease.{lease.token}"
    temporary, aside = db.path / f"{stem}.tmp", db.path / f"{stem}.stale"
    try:
        write_new(temporary, encode_lease(lease))
        with lease_lock(db):
            if judged.state is not LeaseState.FREE and not _set_aside(db, judged, aside):
                return False
            rename_new(temporary, lease_file(db))
    except FileExistsError:  # another one was quicker
        return False
    finally:
        for leftover in (temporary, aside):
            leftover.unlink(missing_ok=True)
    force_to_disk(db.path)
    _remove_leftovers(db)
    return True


def _set_aside(db: DBDir, judged: LeaseStatus, aside: Path) -> bool:
    """Rename the judged lease away and say whether that worked; another lease is put back."""
    try:
        if not _is_judged(lease_file(db), judged):
            return False
        lease_file(db).rename(aside)
        if _is_judged(aside, judged):
            return True
    except FileNotFoundError:  # another one was quicker
        return False
    rename_new(aside, lease_file(db))
    return False


def _is_judged(path: Path, judged: LeaseStatus) -> bool:
    """Say whether a file is the lease that was judged, and was not refreshed since."""
    found, data, heartbeat = read_lease(path)
    same = found.token == judged.lease.token if found and judged.lease else data == judged.data
    return same and (judged.state is LeaseState.DEAD or heartbeat == judged.last_heartbeat)


def _end_orphan(db: DBDir, status: LeaseStatus) -> None:
    """End the server that a dead holder left running on this machine."""
    lease = status.lease
    if status.state is not LeaseState.DEAD or lease is None or not lease.child_pid:
        return
    children = descendants(lease.child_pid) if is_alive(lease.child_pid, lease.child_start) else []
    for pid, start in children:  # the server would wait for suspended ones
        send_signal(pid, start, signal.SIGCONT)
    if not end_process(lease.child_pid, lease.child_start, lease.stop):
        raise Conflict(
            f"the server of {shown(db.path)}, process {lease.child_pid}, has lost its watchdog and can't be ended: "
            f"kill it yourself, or ask the user who started it"
        )
    for pid, start in children:  # they would keep the next server out
        end_process(pid, start, ())


def _remove_leftovers(db: DBDir) -> None:
    """Remove the temporary files of the lease and the address that killed processes left."""
    with contextlib.suppress(OSError), os.scandir(db.path) as entries:
        now = lease_file(db).stat().st_mtime
        for entry in entries:
            ours = entry.name.startswith((".dbserver.", ".dbwriter_address."))
            if ours and entry.name.endswith((".tmp", ".stale")):
                with contextlib.suppress(FileNotFoundError):
                    if now - entry.stat().st_mtime > _LEFTOVER_AGE:
                        os.unlink(entry.path)  # noqa: PTH108
