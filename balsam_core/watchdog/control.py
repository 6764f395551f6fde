"""Start, stop, describe and reset the server of a DB directory: what ``balsam dbserver`` and ``balsam init`` call.

All of it works on files that the watchdog and this program share: the lease says who serves, a request to stop reaches
the watchdog on whatever host it runs, ``dbwriter_address`` is what clients read.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from balsam_core.dbdir import address
from balsam_core.errors import AddressError, Conflict, TimedOut, Unavailable, error_class
from balsam_core.system.files import shown
from balsam_core.system.processes import is_alive, send_signal
from balsam_core.watchdog import stop_request, user_servers
from balsam_core.watchdog.lease import HEARTBEAT, HeldLease, LeaseObserver, LeaseState, LeaseStatus, new_lease
from balsam_core.watchdog.options import ServerOptions
from balsam_core.watchdog.takeover import acquire, check_takeover

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.watchdog.lease import Lease

__all__ = ["ServerState", "Started", "describe", "has_server", "paused", "reset", "start", "stop"]

POLL = 0.05  # seconds between two looks
REMOTE_POLL = 0.25  # and where a look makes a file
LONGEST_START = 180.0  # seconds to wait for the server that somebody else starts
STOP_SLACK = 30.0  # seconds beyond those that the server itself may take to stop

LAST_MOMENTS = 5.0  # seconds that a watchdog may take to end after its lease

Stopped = Literal["stopped", "cleaned", "none"]


@dataclass(frozen=True, kw_only=True)
class Started:
    """A server that runs.

    Attributes:
        address: Where.
        already: Whether it ran before, or somebody else started it at the same time.
    """

    address: Address
    already: bool


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """How the server of a DB directory stands.

    Attributes:
        state: ``stopped``, ``running``, ``starting`` (no address yet, or one of a
            server that has crashed), ``stopping``, ``stale`` (published, but its
            process or its watchdog is gone), ``unwatched`` (published, and no watchdog is known).
        address: The published address; None for none.
        lease: What the watchdog says of itself; None where there is none.
        age: Seconds since the heartbeat of a watchdog that can't be looked at from here; None for others.
    """

    state: Literal["stopped", "running", "starting", "stopping", "stale", "unwatched"]
    address: Address | None = None
    lease: Lease | None = None
    age: float | None = None

    @property
    def since(self) -> datetime | None:
        """When the watchdog started."""
        return datetime.fromtimestamp(self.lease.started, UTC) if self.lease else None


def start(db: DBDir, options: ServerOptions | None = None) -> Started:
    """Make sure that a server runs, and wait until it answers; of many who call this, one starts it.

    Args:
        db: The DB directory.
        options: What is wanted of a new server.

    Raises:
        BalsamError: It could not be started, which names the reason.
        OSError: A file can't be read or written.
    """
    options = options or ServerOptions()
    watch = LeaseObserver(db)
    starter, deadline = "", 0.0
    while True:
        seen = watch.look()
        if seen.lease and seen.lease.token != starter:
            starter, deadline = seen.lease.token, time.monotonic() + LONGEST_START
        if found := _served_by(db, seen):
            return Started(address=found, already=True)
        if seen.is_takeable:
            check_takeover(db, seen, takeover=options.takeover)
            if launched := _launch(db, options):
                return Started(address=launched, already=False)
        elif starter and time.monotonic() > deadline:
            raise TimedOut(f"the server of {shown(db.path)}, which {_holder(seen)} starts, is not ready; see {db.log}")
        time.sleep(_poll(seen))


def stop(db: DBDir, *, takeover: bool = False) -> Stopped:
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
    watch = LeaseObserver(db)
    asked: Lease | None = None
    began = time.monotonic()
    while True:
        seen = watch.look()
        lease = seen.lease
        if seen.state is LeaseState.FREE and (asked or not _is_published(db)):
            if asked is None:
                return "none"
            _await_end(asked)
            return "stopped"
        if seen.is_takeable:
            if _clean(db, watch, takeover=takeover):
                return "stopped" if asked else "cleaned"
            continue
        if lease is not None and asked is None:
            try:
                stop_request.ask_to_stop(db, lease)
            except OSError:  # a full disk; on its own machine a watchdog hears a signal as well
                if not (lease.is_of_this_machine and send_signal(lease.pid, lease.start, signal.SIGTERM)):
                    raise
            asked = lease
        elif lease is not None and asked is not None and lease.token != asked.token:
            return "stopped"  # somebody has started another one meanwhile
        if time.monotonic() - began > STOP_SLACK + (lease.stop_time if lease else 0.0):
            raise TimedOut(
                f"{_holder(seen)} did not stop the server of {shown(db.path)} in time: see {shown(db.log)}; if it is "
                f"gone for good, use balsam dbserver --reset"
            )
        time.sleep(_poll(seen))


def _await_end(lease: Lease) -> None:
    """Wait until a watchdog of this machine that has given its lease back is gone, too."""
    deadline = time.monotonic() + LAST_MOMENTS
    while lease.is_of_this_machine and is_alive(lease.pid, lease.start) and time.monotonic() < deadline:
        if lease.pid == os.getpid():  # a watchdog in the foreground of another thread's program
            return
        time.sleep(POLL / 10)


def reset(db: DBDir) -> None:
    """Remove what a server has left behind, when nothing else helps; nothing that lives is touched.

    Raises:
        Conflict: A server or a watchdog lives.
        OSError: A file can't be read or written.
    """
    watch = LeaseObserver(db)
    while True:
        seen = watch.look()
        lease = seen.lease
        if seen.state is LeaseState.ALIVE:
            raise Conflict(f"{shown(db.path)} is served: {_holder(seen)} lives; use balsam dbserver --stop")
        orphan = lease.child_pid if lease and _child_lives(lease) else _published_process(db)
        if orphan:
            raise Conflict(f"{shown(db.path)} is served: process {orphan} lives; use balsam dbserver --stop")
        if seen.is_takeable and _clean(db, watch, takeover=True):
            return
        time.sleep(_poll(seen))


def describe(db: DBDir) -> ServerState:
    """Return how the server stands; nothing is waited for.

    Raises:
        AddressError: ``dbwriter_address`` can't be understood.
        SchemaMismatch: A newer Balsam wrote one of the files.
        OSError: A file can't be read.
    """
    seen = LeaseObserver(db).look()
    lease = seen.lease
    published = address.read(db)
    if seen.state is LeaseState.FREE:
        if published is None:
            return ServerState(state="stopped")
        return ServerState(state="stale" if address.is_gone(published) else "unwatched", address=published)
    if seen.is_takeable:
        return ServerState(state="stale" if published else "stopped", address=published, lease=lease, age=seen.age)
    if lease is not None and stop_request.stop_asked(db, lease) is not None:
        return ServerState(state="stopping", address=published, lease=lease, age=seen.age)
    running = published is not None and lease is not None and _is_of(published, lease)
    return ServerState(state="running" if running else "starting", address=published, lease=lease, age=seen.age)


def has_server(db: DBDir) -> bool:
    """Say whether there is a server to stop, or what one has left behind.

    Raises:
        SchemaMismatch: A newer Balsam wrote one of the files.
        OSError: A file can't be read.
    """
    return LeaseObserver(db).look().state is not LeaseState.FREE or _is_published(db)


@contextlib.contextmanager
def paused(db: DBDir, *, always: bool = False) -> Iterator[ServerOptions | None]:
    """Stop the server, keep others from starting one while the body runs, and let them again afterwards.

    Args:
        db: The DB directory.
        always: Whether others are kept from it even if no server was running; else nothing is done then.

    Yields:
        What starts the server again as it was; None when none was running.

    Raises:
        BalsamError: The server can't be stopped.
        OSError: A file can't be read or written.
    """
    if not always and not has_server(db):
        yield None
        return
    state = describe(db)
    options = None
    if state.lease is not None and state.state in {"running", "starting"}:
        preferred = state.address.port if state.address else 0
        lease = state.lease
        options = ServerOptions(host=lease.listen, port=lease.port, preferred=preferred, tls=lease.tls)
    watch = LeaseObserver(db)
    while isinstance(held := acquire(db, new_lease(), watch), LeaseStatus):
        stop(db)
    finished = threading.Event()
    beating = threading.Thread(target=_keep_beating, args=(held, finished), daemon=True)
    beating.start()
    try:
        if _is_published(db):
            address.withdraw(db)
        yield options
    finally:
        finished.set()
        beating.join()
        stop_request.forget_stop(db)
        held.release()


def _keep_beating(held: HeldLease, finished: threading.Event) -> None:
    while not finished.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            held.beat()


def _launch(db: DBDir, options: ServerOptions) -> Address | None:
    """Start a watchdog and return the address that it published; None when another watchdog was quicker.

    Raises:
        BalsamError: It reports why it could not start the server.
    """
    from balsam_core.watchdog import process as watchdog

    with subprocess.Popen(
        watchdog.words(db, options),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,  # its pipe to us, until it has a log
        cwd="/",
        env=_environment(),
        start_new_session=True,
    ) as process:
        assert process.stderr is not None  # noqa: S101  (for mypy)
        lines = process.stderr.read().splitlines()  # until it closes the pipe
    try:
        report = msgspec.json.decode(lines[-1], type=watchdog.Report)
    except (IndexError, msgspec.DecodeError, UnicodeDecodeError):
        last = lines[-1].decode(errors="replace") if lines else "it ended without a word"
        raise Unavailable(f"the watchdog of {shown(db.path)} could not start: {last}; see {shown(db.log)}") from None
    if report.code or report.message:
        raise error_class(report.code)(report.message)
    return None if report.occupied else report.address


def _environment() -> dict[str, str]:
    """Return this process's environment, fit for another current directory."""
    environment = dict(os.environ)
    if places := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, places.split(os.pathsep)))
    return environment


def _served_by(db: DBDir, seen: LeaseStatus) -> Address | None:
    """Return the address that a living watchdog has published."""
    if seen.state is not LeaseState.ALIVE or seen.lease is None:
        return None
    try:
        published = address.read(db)
    except AddressError:
        return None
    return published if published is not None and _is_of(published, seen.lease) else None


def _is_of(published: Address, lease: Lease) -> bool:
    """Say whether an address is that of the holder's present server; after a crash it is not, until the next one."""
    if not 0 < lease.epoch <= published.epoch:
        return False
    return not lease.is_of_this_machine or (published.pid == lease.child_pid and _child_lives(lease))


def _clean(db: DBDir, watch: LeaseObserver, *, takeover: bool) -> bool:
    """Remove what a dead watchdog left: its server if that still runs here, the address, the lease.

    Returns:
        Whether that was done; if not, somebody else took the lease.
    """
    held = acquire(db, new_lease(), watch, takeover=takeover)
    if isinstance(held, LeaseStatus):
        return False
    try:
        address.withdraw(db)
        stop_request.forget_stop(db)
        user_servers.remove(db)
    finally:
        held.release()
    return True


def _is_published(db: DBDir) -> bool:
    return os.path.lexists(db.address_file) and address.read(db) is not None


def _published_process(db: DBDir) -> int:
    """Return the published process if it is proven to live on this machine, else 0."""
    try:
        published = address.read(db)
    except AddressError:
        return 0
    if published is None or not address.is_here(published) or address.is_gone(published):
        return 0
    return published.pid


def _child_lives(lease: Lease) -> bool:
    return bool(lease.child_pid) and lease.is_of_this_machine and is_alive(lease.child_pid, lease.child_start)


def _holder(seen: LeaseStatus) -> str:
    return f"process {seen.lease.pid} on {seen.lease.node}" if seen.lease else "an unknown process"


def _poll(seen: LeaseStatus) -> float:
    return POLL if seen.age is None else REMOTE_POLL
