"""The watchdog as a process: detached from its starter, or in the foreground of a terminal, systemd or a container.

``python -m balsam_core.watchdog PATH OPTIONS`` detaches itself; the options are :class:`ServerOptions` as JSON. Its
stderr is at first a pipe to the starter. The last line there is a :class:`Report` on the start, as JSON; anything else
comes from an interpreter that could not even begin.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from balsam_core.backends import registry
from balsam_core.dbdir.address import Address
from balsam_core.dbdir.directory import DBDir, make_tree
from balsam_core.dbdir.lease import LeaseObserver, LeaseState, LeaseStatus, new_lease
from balsam_core.errors import BalsamError, Conflict, InvalidInput, Unavailable, error_class
from balsam_core.plugin_types import ServerPolicy
from balsam_core.system import logs
from balsam_core.system.files import describe_error, shown
from balsam_core.system.permissions import permission_error
from balsam_core.system.signals import StopRequests
from balsam_core.watchdog.options import ServerOptions
from balsam_core.watchdog.server_process import adopt_orphans
from balsam_core.watchdog.supervisor import Supervisor, SupervisorOutcome
from balsam_core.watchdog.takeover import acquire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

_UNSURE_POLL = 0.2  # seconds between two reads of a lease whose holder may be dead


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a watchdog tells its starter.

    Attributes:
        address: The published address; None where another watchdog has the lease, or after an error.
        code: Code of the error that prevented the start, empty for none.
        message: Its text.
    """

    address: Address | None = None
    code: str = ""
    message: str = ""


def launch(db: DBDir, options: ServerOptions) -> Address | None:
    """Start a detached watchdog and return the address that it published; None when another watchdog was quicker.

    Raises:
        BalsamError: It reports why it could not start the server.
    """
    try:
        encoded = msgspec.json.encode(options)
    except UnicodeEncodeError:
        raise InvalidInput(f"no server can listen on {options.host!a}: no host name") from None
    with subprocess.Popen(
        # -P: the current directory is no place for modules.
        [sys.executable, "-P", "-m", "balsam_core.watchdog", os.fspath(db.path), encoded.decode()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env=_portable_environment(),
        start_new_session=True,
    ) as process:
        assert process.stderr is not None  # noqa: S101  (for mypy)
        lines = process.stderr.read().splitlines()  # until it closes the pipe
    try:
        report = msgspec.json.decode(lines[-1], type=Report)
    except (IndexError, msgspec.DecodeError, UnicodeDecodeError):
        last = lines[-1].decode(errors="replace") if lines else "it ended without a message"
        raise Unavailable(f"the watchdog of {shown(db.path)} could not start: {last}; see {shown(db.log)}") from None
    if report.code:
        error = error_class(report.code)
        raise error(report.message + (f"; its log is in {shown(db.log)}" if error is Unavailable else ""))
    return report.address


def _portable_environment() -> dict[str, str]:
    """Return this process's environment, fit for another current directory."""
    environment = dict(os.environ)
    if folders := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, folders.split(os.pathsep)))
    return environment


def main(argv: Sequence[str]) -> int:
    """Detach from the starter, serve until the end and return the exit code."""
    # Twice forked, it is a child of init: no starter that lives on has to wait for it.
    if os.fork():
        os._exit(0)
    pipe = os.fdopen(os.dup(2), "wb", buffering=0)  # dup() makes it private: the server does not get it
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    adopt_orphans()

    def send_report(report: Report) -> None:
        """Tell the starter; only the first report is sent."""
        with contextlib.suppress(OSError, ValueError):  # the starter is gone, or the pipe is closed
            pipe.write(msgspec.json.encode(report) + b"\n")
            pipe.close()

    try:
        db = DBDir.open(argv[0])
        options = msgspec.json.decode(argv[1], type=ServerOptions)
        outcome = _serve_db(
            db,
            options,
            on_lease=lambda: _redirect_output(_open_log(db)),
            on_ready=lambda address: send_report(Report(address=address)),
        )
        if outcome is None:
            send_report(Report())
        early = f"the server of {shown(db.path)} was stopped before it was ready"
        send_report(Report(code=Unavailable.code, message=early))
    except BaseException as err:
        told = permission_error(err) or err
        code = told.code if isinstance(told, BalsamError) else "error"
        send_report(Report(code=code, message=describe_error(told)))
        if not isinstance(err, (BalsamError, OSError)):
            logger.exception("the watchdog ends because of an internal error")
        return 1
    finally:
        logs.close()
    return 0


def run_in_foreground(db: DBDir, options: ServerOptions, on_ready: Callable[[Address], None]) -> None:
    """Serve in this process until SIGTERM, SIGINT or a request to stop; ``on_ready`` gets the published address.

    Raises:
        BalsamError: Another server runs, the server could not be started, or the lease was lost.
    """

    def open_logs() -> None:
        _open_log(db)
        logging.getLogger().addHandler(stream)

    def tell_ready(address: Address) -> None:
        _notify_systemd("READY=1")
        on_ready(address)

    stream = logging.StreamHandler()
    stream.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    try:
        outcome = _serve_db(db, options, on_lease=open_logs, on_ready=tell_ready)
    finally:
        _notify_systemd("STOPPING=1")
        logging.getLogger().removeHandler(stream)
        logs.close()
    if outcome is None:
        raise Conflict(
            f"{shown(db.path)} has a server already: see balsam dbserver --status, end it with balsam dbserver --stop"
        )
    if outcome is SupervisorOutcome.REPLACED:
        raise Conflict(f"{shown(db.path)} was taken over by another watchdog, so the server of this one was ended")


def _serve_db(
    db: DBDir, options: ServerOptions, *, on_lease: Callable[[], object], on_ready: Callable[[Address], None]
) -> SupervisorOutcome | None:
    """Take the lease, call ``on_lease``, and serve; None when another watchdog serves."""
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
        observer = LeaseObserver(db)
        while isinstance(held := acquire(db, lease, observer, takeover=options.takeover), LeaseStatus):
            if stops.number is not None:
                return SupervisorOutcome.STOPPED
            if held.state is LeaseState.ALIVE:
                return None
            time.sleep(_UNSURE_POLL)
        try:
            on_lease()
            supervisor = Supervisor(db, backend, held, options, stops, on_ready)
        except BaseException:
            with contextlib.suppress(OSError):
                held.release()
            raise
        return supervisor.run()


def _open_log(db: DBDir) -> Path:
    logging.raiseExceptions = False  # a full disk must not stop the server
    make_tree(db.path)
    return logs.configure(db.log, "dbserver", context=f"db={db.path}", keep=50)


def _redirect_output(log: Path) -> None:
    """Send what the interpreter itself may print to the log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _notify_systemd(message: str) -> None:
    """Tell systemd, if it started this process and asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        import socket

        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            channel.send(message.encode())
