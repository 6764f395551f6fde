"""Start, stop, describe and reset the server of a DB directory: what ``balsam dbserver`` and ``balsam init`` call.

All of it works on files that the watchdog and this program share: the lease says which watchdog serves, a request to
stop reaches the watchdog on whatever host it runs, and clients read ``dbwriter_address``.
"""

from __future__ import annotations

import math
import os
import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from balsam_core.dbdir import address
from balsam_core.dbdir.lease import LeaseObserver, LeaseState, LeaseStatus, new_lease
from balsam_core.dbdir.publication import RESTART_TIMEOUT
from balsam_core.errors import AddressError, Conflict, TimedOut
from balsam_core.system.files import shown
from balsam_core.system.processes import is_alive, send_signal
from balsam_core.watchdog import stop_request, user_servers
from balsam_core.watchdog.options import ServerOptions
from balsam_core.watchdog.takeover import acquire

if TYPE_CHECKING:
    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.lease import Lease

LOCAL_POLL = 0.05  # seconds between two reads of the lease
REMOTE_POLL = 0.25  # the same where each read makes a file, to learn the file system's time
START_TIMEOUT = 180.0  # seconds to wait for the server that another process starts
STOP_MARGIN = 30.0  # seconds beyond those that the server itself may take to stop
EXIT_TIMEOUT = 5.0  # seconds that a watchdog may take to end after it has given its lease back
EXIT_POLL = 0.005  # seconds between two checks of that


@dataclass(frozen=True, kw_only=True)
class Started:
    """A server that runs.

    Attributes:
        address: Its published address.
        already: Whether it ran before, or another process started it at the same time.
    """

    address: Address
    already: bool


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """How the server of a DB directory stands.

    Attributes:
        state: ``stopped``, ``running``, ``starting`` (no address yet, or one of a server that has crashed),
            ``stopping``, ``failed`` (it was given up), ``stale`` (its process or its watchdog is gone; it is published,
            or its address is lost), ``unwatched`` (published, and no watchdog is known), ``unknown`` (the address is
            missing or damaged, and no watchdog is known that would write it again).
        address: The published address; None for none.
        lease: What the watchdog says of itself; None where there is none.
        age: Seconds since the last heartbeat of a watchdog that can't be looked up from here; None for others.
        fault: Why the address can't be read, or the server was given up; else empty.
    """

    state: Literal["stopped", "running", "starting", "stopping", "failed", "stale", "unwatched", "unknown"]
    address: Address | None = None
    lease: Lease | None = None
    age: float | None = None
    fault: str = ""

    @property
    def since(self) -> datetime | None:
        """When the watchdog started."""
        return datetime.fromtimestamp(self.lease.started, UTC) if self.lease else None


def start(db: DBDir, options: ServerOptions | None = None) -> Started:
    """Make sure that a server runs, and wait until it answers; of many callers, one starts it.

    Raises:
        BalsamError: It could not be started, which names the reason.
        OSError: A file can't be read or written.
    """
    options = options or ServerOptions()
    observer = LeaseObserver(db)
    token, deadline, damaged_since = "", 0.0, math.inf
    while True:
        status = observer.observe()
        if status.lease and status.lease.token != token:
            token, deadline, damaged_since = status.lease.token, time.monotonic() + START_TIMEOUT, math.inf
        try:
            if found := _published_by(db, status):
                return Started(address=found, already=True)
            damaged_since = math.inf
        except AddressError:
            damaged_since = min(damaged_since, time.monotonic())
            if time.monotonic() - damaged_since > RESTART_TIMEOUT:  # the watchdog can't mend it
                raise
        if status.is_available:
            if token and (failure := address.failure(db)):  # while this waited for it
                raise failure
            from balsam_core.watchdog.process import launch

            if launched := launch(db, options):
                return Started(address=launched, already=False)
        elif token and time.monotonic() > deadline:
            raise TimedOut(
                f"the server of {shown(db.path)}, which {_describe_holder(status)} starts, is not ready; see {db.log}"
            )
        time.sleep(_poll_interval(status))


def stop(db: DBDir, *, takeover: bool = False) -> Literal["stopped", "cleaned", "none"]:
    """Stop the server, wherever it runs, and wait until it has ended.

    Args:
        db: The DB directory.
        takeover: Whether the lease of a dead machine may be removed where that could destroy data.

    Returns:
        ``stopped``; ``cleaned`` when it had died and what it left was removed; ``none`` when there was none.

    Raises:
        TimedOut: It did not end.
        BalsamError: What is left of it can't be removed.
        OSError: A file can't be read or written.
    """
    observer = LeaseObserver(db)
    asked: Lease | None = None
    began = time.monotonic()
    while True:
        status = observer.observe()
        lease = status.lease
        if status.state is LeaseState.FREE and (asked or not is_published(db)):
            if asked is None:
                return "none"
            _await_exit(asked)
            return "stopped"
        if status.is_available:
            if _clean_up(db, observer, takeover=takeover):
                return "stopped" if asked else "cleaned"
            continue
        if lease is not None and asked is None:
            try:
                stop_request.ask_to_stop(db, lease)
            except OSError:  # a full disk; on its own machine a watchdog can be sent a signal as well
                if not (lease.is_of_this_machine and send_signal(lease.pid, lease.start, signal.SIGTERM)):
                    raise
            asked = lease
        elif lease is not None and asked is not None and lease.token != asked.token:
            return "stopped"  # another one was started meanwhile
        stop_time = sum(seconds for _, seconds in lease.stop) if lease else 0.0
        if time.monotonic() - began > STOP_MARGIN + stop_time:
            raise TimedOut(
                f"{_describe_holder(status)} did not stop the server of {shown(db.path)} in time: see {shown(db.log)}; "
                f"if it is gone for good, use balsam dbserver --reset"
            )
        time.sleep(_poll_interval(status))


def _await_exit(lease: Lease) -> None:
    """Wait until a watchdog of this machine that has given its lease back has ended, too."""
    deadline = time.monotonic() + EXIT_TIMEOUT
    while lease.is_of_this_machine and is_alive(lease.pid, lease.start) and time.monotonic() < deadline:
        if lease.pid == os.getpid():  # it runs in the foreground of this very process
            return
        time.sleep(EXIT_POLL)


def reset(db: DBDir) -> None:
    """Remove what a dead server has left behind, when nothing else helps; no living process is touched.

    Raises:
        Conflict: A server or a watchdog lives.
        OSError: A file can't be read or written.
    """
    observer = LeaseObserver(db)
    while True:
        status = observer.observe()
        lease = status.lease
        if status.state is LeaseState.ALIVE:
            raise Conflict(f"{shown(db.path)} is served: {_describe_holder(status)} lives; use balsam dbserver --stop")
        orphan = lease.child_pid if lease and _server_lives(lease) else _living_published_pid(db)
        if orphan:
            raise Conflict(f"{shown(db.path)} is served: process {orphan} lives; use balsam dbserver --stop")
        if status.is_available and _clean_up(db, observer, takeover=True):
            return
        time.sleep(_poll_interval(status))


def describe(db: DBDir) -> ServerState:
    """Return how the server stands, without waiting.

    Raises:
        SchemaMismatch: A newer Balsam wrote one of the files.
        OSError: A file can't be read.
    """
    status = LeaseObserver(db).observe()
    lease, age = status.lease, status.age
    try:
        published = address.find(db)
    except AddressError as err:
        return _describe_unpublished(status, str(err))
    if published is not None and published.state == "failed":
        if status.is_available:
            return ServerState(state="failed", fault=str(address.failure(db)))
        published = None  # it has another chance
    if status.state is LeaseState.FREE:
        state: Literal["stopped", "stale", "unwatched"] = "stopped"
        if published is not None:
            state = "stale" if address.is_gone(published) else "unwatched"
        return ServerState(state=state, address=published)
    if status.is_available:
        return ServerState(state="stale" if published else "stopped", address=published, lease=lease, age=age)
    if lease is not None and stop_request.stop_asked(db, lease) is not None:
        return ServerState(state="stopping", address=published, lease=lease, age=age)
    is_running = published is not None and lease is not None and _is_current(published, lease)
    return ServerState(state="running" if is_running else "starting", address=published, lease=lease, age=age)


def _describe_unpublished(status: LeaseStatus, fault: str) -> ServerState:
    """Return how a server stands whose address can't be read."""
    state: Literal["stale", "unknown", "starting"] = "unknown" if status.is_available else "starting"
    if status.is_left_behind:
        state, fault = "stale", "it is not running, and its address is lost"
    return ServerState(state=state, lease=status.lease, age=status.age, fault=fault)


def has_server(db: DBDir) -> bool:
    """Say whether there is a server to stop, or what one has left behind.

    Raises:
        SchemaMismatch: A newer Balsam wrote one of the files.
        OSError: A file can't be read.
    """
    return LeaseObserver(db).observe().state is not LeaseState.FREE or is_published(db)


def _published_by(db: DBDir, status: LeaseStatus) -> Address | None:
    """Return the address that a living watchdog has published.

    Raises:
        AddressError: The address that it has published can't be read.
    """
    if status.state is not LeaseState.ALIVE or status.lease is None:
        return None
    try:
        published = address.find(db)
    except AddressError:
        if status.lease.generation:
            raise
        return None
    is_running = published is not None and published.state == "running" and _is_current(published, status.lease)
    return published if is_running else None


def _is_current(published: Address, lease: Lease) -> bool:
    """Say whether an address is that of the holder's present server; after a crash it is not, until the next one."""
    if not 0 < lease.generation <= published.generation:
        return False
    return not lease.is_of_this_machine or (published.pid == lease.child_pid and _server_lives(lease))


def _clean_up(db: DBDir, observer: LeaseObserver, *, takeover: bool) -> bool:
    """Remove what a dead watchdog left: its server if that still runs here, the address, the lease.

    Nothing is done, and False returned, where another process took the lease.
    """
    held = acquire(db, new_lease(), observer, takeover=takeover)
    if isinstance(held, LeaseStatus):
        return False
    try:
        address.withdraw(db)
        stop_request.forget_stop(db)
        user_servers.remove(db)
    finally:
        held.release()
    return True


def is_published(db: DBDir) -> bool:
    """Say whether a server may be published: there is an address, or a damaged one."""
    try:
        return os.path.lexists(db.address_file) and address.find(db) is not None
    except AddressError:
        return True


def _living_published_pid(db: DBDir) -> int:
    """Return the published process if it is proven to live on this machine, else 0."""
    try:
        published = address.find(db)
    except AddressError:
        return 0
    if published is None or published.state != "running" or not address.is_here(published):
        return 0
    if address.is_gone(published):
        return 0
    return published.pid


def _server_lives(lease: Lease) -> bool:
    return bool(lease.child_pid) and lease.is_of_this_machine and is_alive(lease.child_pid, lease.child_start)


def _describe_holder(status: LeaseStatus) -> str:
    return f"process {status.lease.pid} on {status.lease.node}" if status.lease else "an unknown process"


def _poll_interval(status: LeaseStatus) -> float:
    return LOCAL_POLL if status.age is None else REMOTE_POLL
