"""The watchdog as a process: detached from its starter, or in the foreground of a terminal, systemd or a container.

``python -m balsam_core.watchdog PATH NAME=VALUE...`` detaches itself. Its stderr is at first the pipe of the starter: a
line of JSON there says how the start went, whatever else comes is an interpreter that could not even begin.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from balsam_core.backends import registry
from balsam_core.dbdir.address import Address
from balsam_core.dbdir.directory import DBDir, make_tree
from balsam_core.errors import BalsamError, Conflict, InvalidInput, Unavailable
from balsam_core.plugin_types import ServerPolicy
from balsam_core.system import logs
from balsam_core.system.files import reason, shown
from balsam_core.system.signals import StopRequests
from balsam_core.watchdog.lease import HeldLease, LeaseObserver, LeaseState, LeaseStatus, new_lease
from balsam_core.watchdog.options import ServerOptions
from balsam_core.watchdog.server_process import adopt_orphans
from balsam_core.watchdog.supervisor import Supervisor, SupervisorOutcome
from balsam_core.watchdog.takeover import acquire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["Report", "main", "run_in_foreground", "words"]

logger = logging.getLogger(__name__)

_UNSURE_POLL = 0.2  # seconds between two looks at a lease that may be dead


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a watchdog tells its starter.

    Attributes:
        address: The published address; None without success.
        occupied: Whether another watchdog has the lease.
        code: Code of the error that prevented the start, empty for none.
        message: Its text.
    """

    address: Address | None = None
    occupied: bool = False
    code: str = ""
    message: str = ""


def words(db: DBDir, options: ServerOptions) -> list[str]:
    """Return the command line of a watchdog."""
    return [
        # -P: its directory, wherever that is, is no place for modules.
        *(sys.executable, "-P", "-m", "balsam_core.watchdog"),
        *(os.fspath(db.path), f"host={options.host}", f"port={options.port}", f"preferred={options.preferred}"),
        *(["takeover=1"] if options.takeover else []),
        *([] if options.tls else ["plain=1"]),
    ]


def main(argv: Sequence[str]) -> int:
    """Detach from the starter, serve until the end and return the exit code."""
    # Twice forked, it belongs to init: no starter that lives on has to wait for it.
    if os.fork():
        os._exit(0)
    pipe = os.fdopen(os.dup(2), "wb", buffering=0)  # dup() makes it private: the server does not get it
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    adopt_orphans()

    def tell(report: Report) -> None:
        with contextlib.suppress(OSError, ValueError):  # the starter is gone
            pipe.write(msgspec.json.encode(report) + b"\n")
            pipe.close()

    try:
        values = dict(word.split("=", 1) for word in argv[1:])
        options = ServerOptions(
            host=values["host"],
            port=int(values["port"]),
            preferred=int(values["preferred"]),
            takeover="takeover" in values,
            tls="plain" not in values,
        )
        db = DBDir.open(argv[0])
        outcome = _serve(db, options, lambda address: tell(Report(address=address)), begin=lambda: _into(_log(db)))
        if outcome is None:
            tell(Report(occupied=True))
        # Only if nothing was told before.
        tell(Report(code=Unavailable.code, message=f"the server of {shown(db.path)} was stopped before it was ready"))
    except BaseException as err:
        code = err.code if isinstance(err, BalsamError) else "error"
        tell(Report(code=code, message=_text(err)))
        if not isinstance(err, (BalsamError, OSError)):
            logger.exception("the watchdog ends by a fault of its own")
        return 1
    finally:
        logs.close()
    return 0


def run_in_foreground(db: DBDir, options: ServerOptions, ready: Callable[[Address], None]) -> None:
    """Serve in this process until SIGTERM, SIGINT or a request to stop.

    Args:
        db: The DB directory.
        options: What the user wants.
        ready: Called when the address is published.

    Raises:
        BalsamError: Another server runs, the server could not be started, or the lease was lost.
    """

    def begin() -> None:
        _log(db)
        logging.getLogger().addHandler(stream)

    def serving(address: Address) -> None:
        _notify("READY=1")
        ready(address)

    stream = logging.StreamHandler()
    stream.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    try:
        outcome = _serve(db, options, serving, begin=begin)
    finally:
        _notify("STOPPING=1")
        logging.getLogger().removeHandler(stream)
        logs.close()
    if outcome is None:
        raise Conflict(
            f"{shown(db.path)} has a server already: see balsam dbserver --status, end it with balsam dbserver --stop"
        )
    if outcome is SupervisorOutcome.REPLACED:
        raise Conflict(f"{shown(db.path)} was taken over by another watchdog, so the server of this one was ended")


def _serve(
    db: DBDir, options: ServerOptions, ready: Callable[[Address], None], *, begin: Callable[[], object]
) -> SupervisorOutcome | None:
    """Take the lease and serve; None when another one serves.

    Args:
        db: The DB directory.
        options: What the user wants.
        ready: Called when the address is published.
        begin: Called once the lease is taken: opens the log.
    """
    backend = registry.load(db.db_type)
    policy = backend.server_policy(db)
    if policy is ServerPolicy.NONE:
        if backend.identity.server is ServerPolicy.NONE:
            raise InvalidInput(f"{backend.identity.title} has no server: use the DB without one")
        raise InvalidInput(f"{shown(db.path)} uses a server that somebody else runs: it needs no dbserver")
    with StopRequests() as stops:
        lease = new_lease(
            listen=options.host, port=options.port, tls=options.tls, exclusive=policy is ServerPolicy.REQUIRED
        )
        watch = LeaseObserver(db)
        while isinstance(held := acquire(db, lease, watch, takeover=options.takeover), LeaseStatus):
            if stops.number is not None:
                return SupervisorOutcome.STOPPED
            if held.state is LeaseState.ALIVE:
                return None
            time.sleep(_UNSURE_POLL)
        try:
            begin()
            supervisor = Supervisor(db, backend, held, options, stops, ready)
        except BaseException:
            _give_back(held)
            raise
        return supervisor.run()


def _give_back(held: HeldLease) -> None:
    with contextlib.suppress(OSError):
        held.release()


def _log(db: DBDir) -> Path:
    logging.raiseExceptions = False  # a full disk must not stop the server
    make_tree(db.path)
    return logs.configure(db.log, "dbserver", context=f"db={db.path}", keep=50)


def _into(log: Path) -> None:
    """Send what the interpreter itself may print to the log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _text(err: BaseException) -> str:
    if isinstance(err, BalsamError):
        return err.message
    if isinstance(err, OSError):
        return f"{shown(err.filename)}: {reason(err)}" if isinstance(err.filename, str) else reason(err)
    return f"unexpected {type(err).__name__}: {err}"


def _notify(message: str) -> None:
    """Tell systemd, if it started this process and asked for it."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place.startswith(("/", "@")):
        import socket

        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(place.replace("@", "\0", 1) if place.startswith("@") else place)
            channel.send(message.encode())
