"""A time without a server, for work on the database that bears none: a refresh of the schema, a backup."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from balsam_core.dbdir import address
from balsam_core.dbdir.directory import DBDir
from balsam_core.dbdir.lease import HEARTBEAT, HeldLease, LeaseObserver, LeaseStatus, new_lease
from balsam_core.errors import AddressError, BalsamError
from balsam_core.watchdog import control, stop_request
from balsam_core.watchdog.options import ServerOptions
from balsam_core.watchdog.takeover import acquire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.dbdir.address import Address


@dataclass
class Pause:
    """A time without a server.

    Attributes:
        restarted: Where the server that was stopped for it serves again, once the time is over; None when none was.
    """

    restarted: Address | None = None


@contextlib.contextmanager
def paused(db: DBDir, *, always: bool = False) -> Iterator[Pause]:
    """Stop the server, let nobody start one while the body runs, and start it again as it was.

    Where none was running, others are kept from starting one only with ``always``. A server that was stopped is started
    again after an error of the body, too.

    Raises:
        BalsamError: The server can't be stopped, or not be started again.
        OSError: A file can't be read or written.
    """
    pause = Pause()
    if not always and not control.has_server(db):
        yield pause
        return
    server = None
    try:
        with _stopped(db) as server:
            yield pause
    except BaseException:
        if server is not None:
            with contextlib.suppress(BalsamError, OSError):
                control.start(db, server)
        raise
    if server is not None:
        pause.restarted = control.start(DBDir.open(db.path), server).address


@contextlib.contextmanager
def _stopped(db: DBDir) -> Iterator[ServerOptions | None]:
    """Stop the server and hold its lease; yield the options that start it again, None when none was running."""
    state = control.describe(db)
    options = None
    if state.lease is not None and state.state in {"running", "starting"}:
        preferred_port = state.address.port if state.address else 0
        lease = state.lease
        options = ServerOptions(host=lease.listen, port=lease.port, preferred_port=preferred_port, tls=lease.tls)
    observer = LeaseObserver(db)
    while isinstance(held := acquire(db, new_lease(), observer), LeaseStatus):
        control.stop(db)
    finished = threading.Event()
    refreshing = threading.Thread(target=_keep_refreshing, args=(held, finished), daemon=True)
    refreshing.start()
    try:
        with _withdrawn(db):
            yield options
    finally:
        finished.set()
        refreshing.join()
        stop_request.forget_stop(db)
        held.release()


@contextlib.contextmanager
def _withdrawn(db: DBDir) -> Iterator[None]:
    """Withdraw what is published; if the body fails, a server that was given up stays so."""
    failed = None
    with contextlib.suppress(AddressError):
        failed = address.find(db)
    if control.is_published(db):
        address.withdraw(db)
    try:
        yield
    except BaseException:
        if failed is not None and failed.state == "failed":
            address.write(db, failed)
        raise


def _keep_refreshing(held: HeldLease, finished: threading.Event) -> None:
    while not finished.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            held.refresh()
