"""The watchdog: one process per served DB directory that keeps the server running and its address published.

It runs the one foreground child that a backend's ``ServerPlan`` describes, in one thread around one ``poll``, and knows
nothing about databases. It holds the lease; it is the only one that writes the address. Its process is the affair of
:mod:`balsam_core.watchdog.process`.
"""

from __future__ import annotations

import contextlib
import logging
import select
import signal
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.dbdir import address
from balsam_core.errors import BalsamError, Unavailable
from balsam_core.system import network
from balsam_core.system.failpoints import failpoint
from balsam_core.system.files import reason, shown
from balsam_core.system.processes import this_machine
from balsam_core.watchdog import stop_request, user_servers
from balsam_core.watchdog.health import Health
from balsam_core.watchdog.lease import EXPIRY, HEARTBEAT
from balsam_core.watchdog.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from balsam_core.backends.registry import Backend
    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.plugin_types import ServerPlan
    from balsam_core.system.signals import StopRequests
    from balsam_core.watchdog.lease import HeldLease
    from balsam_core.watchdog.options import ServerOptions

__all__ = ["Supervisor", "SupervisorOutcome"]

logger = logging.getLogger(__name__)

FIRST_ATTEMPTS = 3  # starts that may fail before the first success; later nothing makes the watchdog give up
LONGEST_PAUSE = 2.0  # seconds between two restarts; clients resume within 5 s once the cause is gone
HEALTHY_AFTER = 1.0  # seconds of service, after which an exit counts as the first one
INTENT_POLL = 0.5  # seconds between two looks for a request to stop
READY_POLL = 0.02  # seconds between two questions whether a starting server is ready
READY_PROBE = 0.25  # seconds that such a question may take
PUBLISH_AGAIN = 1.0  # seconds until an address that could not be written is tried again
QUICK = 0.5  # seconds for each stop signal when there is no time for more
_FAULTS = ("ERROR", "FATAL", "PANIC")  # words of the line of a server's output that tells most; the first of them
KILLED = 10.0  # seconds that a killed server may take to go; longer means that the kernel holds it


class SupervisorOutcome(Enum):
    """How a watchdog's work ended."""

    STOPPED = "stopped"
    """It was asked to stop, and all is cleaned up."""
    REPLACED = "replaced"
    """Another one has the lease; the server is ended, the address is not ours any more."""


class Supervisor:
    """Keeps the server of one DB directory running.

    Args:
        db: The DB directory.
        backend: Its backend.
        held: The lease.
        options: What the user wants.
        stops: The signals that ask for the end.
        ready: Called with the address once it is published for the first time.
    """

    def __init__(
        self,
        db: DBDir,
        backend: Backend,
        held: HeldLease,
        options: ServerOptions,
        stops: StopRequests,
        ready: Callable[[Address], None],
    ) -> None:
        self._db = db
        self._backend = backend
        self._held = held
        self._options = options
        self._stops = stops
        self._ready = ready
        self._epoch = address.last_epoch(db)
        self._advertised = network.advertised(options.host) if network.is_wildcard(options.host) else ""
        self._port = options.port or options.preferred
        self._plan: ServerPlan | None = None
        self._server: ServerProcess | None = None
        self._health: Health | None = None  # of a server that is ready
        self._published = False  # whether the address is that of the present server
        self._published_at = 0.0
        self._ever_ready = False
        self._failures = 0
        self._start_at = 0.0
        self._publish_at = 0.0
        self._intent_at = 0.0
        self._beat_at = 0.0
        self._beaten = monotonic()
        self._outcome: SupervisorOutcome | None = None

    def run(self) -> SupervisorOutcome:
        """Serve until the end.

        Raises:
            BalsamError: The server could not be started a first time; all is cleaned up.
            OSError: The same.
        """
        user_servers.add(self._db)
        try:
            while self._outcome is None:
                self.run_once()
        except BaseException as err:
            if isinstance(err, (BalsamError, OSError)):
                logger.error("the watchdog gives up: %s", err)  # noqa: TRY400  (no news in the traceback)
            else:
                logger.exception("the watchdog ends by a fault of its own")
            self._clean_up()
            raise
        return self._outcome

    def run_once(self) -> None:
        """Wait for the next event and act on it; after the last one the outcome is set."""
        self._wait(self._pause(), self._server)
        now = monotonic()
        if not self._keep_lease(now):
            self._give_way()
        elif who := self._stop_wanted(now):
            logger.info("epoch=%d: stopping: asked by %s", self._epoch, who)
            self._clean_up()
            self._outcome = SupervisorOutcome.STOPPED
        elif self._server is None:
            if now >= self._start_at:
                self._start()
        elif self._server.ended():
            self._failed(f"{self._server.describe_end()} after {self._server.seconds:.1f} s")
        elif self._health is None:
            self._await_ready(self._server)
        elif not self._published:
            if now >= self._publish_at:
                self._publish(self._server)
        elif fault := self._health.check():
            self._failed(fault)

    # ---- waiting

    def _pause(self) -> float:
        """Return the seconds until there is something to do."""
        dues = [self._beat_at, self._intent_at]
        if self._server is None:
            dues.append(self._start_at)
        elif self._health is None:
            dues.append(monotonic() + READY_POLL)
        else:
            dues.append(self._health.due if self._published else self._publish_at)
        return max(0.0, min(dues) - monotonic())

    def _wait(self, seconds: float, server: ServerProcess | None) -> None:
        """Wait for signals, the server's end or output, at most so long."""
        poll = select.poll()
        poll.register(self._stops.descriptor, select.POLLIN)
        if server is not None:
            for descriptor in (server.output, server.ending):
                if descriptor is not None:
                    poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(seconds * 1000):
            if descriptor == self._stops.descriptor:
                self._stops.drain()
            elif server is not None and descriptor == server.output:
                server.read()

    def _stop_wanted(self, now: float) -> str | None:
        """Return who wants the server to stop; None when nobody does."""
        if self._stops.number is not None:
            return signal.Signals(self._stops.number).name
        if now < self._intent_at:
            return None
        self._intent_at = now + INTENT_POLL
        return stop_request.stop_asked(self._db, self._held.lease)

    # ---- the lease

    def _keep_lease(self, now: float) -> bool:
        """Refresh the lease when it is time; say whether it is still ours."""
        if now < self._beat_at:
            return True
        self._beat_at = now + HEARTBEAT
        try:
            ours = self._held.beat()
        except OSError as err:
            silent = now - self._beaten
            logger.warning("the lease can't be refreshed: %s", reason(err))
            if silent > EXPIRY - HEARTBEAT and self._server is not None:
                # Another machine may take it now. Served again once the lease turns out to be ours still.
                self._failed(f"must rest: the lease was not refreshed for {silent:.0f} s")
            return True
        self._beaten = now
        return ours

    def _give_way(self) -> None:
        """End the server at once; the address belongs to whoever took the lease."""
        logger.error("epoch=%d: the lease was taken by another watchdog or removed; this one ends", self._epoch)
        self._end_server(quick=True)
        self._outcome = SupervisorOutcome.REPLACED

    # ---- starting

    def _start(self) -> None:
        """Start the server."""
        host = self._options.host
        try:
            if not self._held.is_ours():
                self._give_way()
                return
            port = network.choose_port(host, fixed=self._options.port, preferred=self._port)
            plan = self._backend.start_server(self._db, host, port, tls=self._options.tls)
            server = ServerProcess(self._db, plan)
        except (BalsamError, OSError) as err:
            if not self._ever_ready:
                raise
            self._failed(f"can't be started: {err}")
            return
        self._plan, self._server, self._port = plan, server, port
        self._record(
            child_pid=server.pid,
            child_start=server.start,
            stop=[(int(number), float(seconds)) for number, seconds in plan.stop],
            restarts=self._held.lease.restarts + self._ever_ready,
        )
        logger.info("server pid=%d: started on %s port %d", server.pid, host, port)

    def _record(self, **changes: object) -> None:
        """Write into the lease; a full disk must not end the server."""
        try:
            if not self._held.update(**changes):
                self._give_way()
        except OSError as err:
            logger.warning("the lease can't be changed: %s", reason(err))

    def _await_ready(self, server: ServerProcess) -> None:
        """Ask a starting server whether it is ready, and publish it then."""
        plan = self._current_plan()
        try:
            ready = plan.is_ready(READY_PROBE)
        except Exception as err:
            if not self._ever_ready:
                if isinstance(err, BalsamError):
                    raise
                raise Unavailable(
                    f"{self._backend.provider} failed to look whether its server is ready: {err}"
                ) from err
            self._failed(f"can't be asked whether it is ready: {err}")
            return
        if ready and not server.ended():
            self._health = Health(server, plan.is_ready)
            self._publish(server)
        elif server.seconds > plan.ready_timeout:
            late = f"was not ready after {plan.ready_timeout:g} s"
            if not self._ever_ready:
                raise Unavailable(self._never_started(late, server.last_lines))
            self._failed(late)

    def _publish(self, server: ServerProcess) -> None:
        """Publish the address of a server that is ready."""
        plan = self._current_plan()
        machine = this_machine()
        published = address.Address(
            state="running",
            host=self._advertised if self._advertised and network.is_wildcard(plan.host) else plan.host,
            port=plan.port,
            protocol=plan.protocol,
            node=machine.node,
            boot_id=machine.boot_id,
            pid=server.pid,
            pid_namespace=machine.pid_namespace,
            start_time=server.start,
            directory=self._held.lease.directory,
            epoch=self._epoch + 1,
            details=dict(plan.details),
        )
        try:
            if not self._held.is_ours():
                self._give_way()
                return
            failpoint("before_publish")
            address.write(self._db, published)
            failpoint("after_publish")
        except (BalsamError, OSError) as err:
            if not self._ever_ready:
                raise
            logger.warning("epoch=%d: the address can't be published: %s", published.epoch, err)
            self._publish_at = monotonic() + PUBLISH_AGAIN
            return
        self._epoch = published.epoch
        self._published, self._published_at = True, monotonic()
        self._record(epoch=self._epoch)
        if self._outcome is not None:
            return
        where = f"{published.host}:{published.port}"
        logger.info(
            "epoch=%d: server pid=%d is ready at %s after %.2f s", self._epoch, server.pid, where, server.seconds
        )
        if not self._ever_ready:
            self._ever_ready = True
            self._ready(published)

    def _current_plan(self) -> ServerPlan:
        assert self._plan is not None  # noqa: S101  (for mypy: a server has a plan)
        return self._plan

    # ---- ending

    def _failed(self, why: str) -> None:
        """End what is left of the server, and plan the next start."""
        server = self._server
        healthy = self._published and monotonic() - self._published_at > HEALTHY_AFTER
        self._failures = 1 if healthy else self._failures + 1
        self._end_server(quick=True)
        lines = server.last_lines if server else []
        pause = 0.0 if self._failures == 1 else min(LONGEST_PAUSE, 0.1 * 2.0 ** min(self._failures - 2, 10))
        logger.error(
            "epoch=%d: server%s %s; started again in %.1f s; its last output: %s",
            self._epoch,
            f" pid={server.pid}" if server else "",
            why,
            pause,
            " | ".join(lines) or "none",
        )
        if not self._ever_ready:
            if self._failures >= FIRST_ATTEMPTS:
                raise Unavailable(self._never_started(why, lines))
            if not self._options.port:
                self._port = 0  # it may have been taken in the meantime
        self._start_at = monotonic() + pause

    def _never_started(self, why: str, lines: list[str]) -> str:
        telling = [line for line in lines if any(word in line for word in _FAULTS)] or lines[-1:]
        said = f": {telling[0]}" if telling else ""
        return f"the server of {shown(self._db.path)} {why}{said}; its log is in {shown(self._db.log)}"

    def _end_server(self, *, quick: bool) -> None:
        """Stop the server by the signals of its plan, then by force, and wait until it has ended."""
        server, self._server = self._server, None
        self._health, self._published = None, False
        if server is None:
            return
        plan = self._current_plan()
        for number, seconds in plan.stop:
            if server.ended() or self._stops.count > 1:
                break
            server.signal(number)
            self._wait_for_end(server, min(seconds, QUICK) if quick else seconds, patient=False)
        while not server.ended():
            logger.warning("server pid=%d: killed, since it did not stop", server.pid)
            server.kill()
            self._wait_for_end(server, KILLED, patient=True)

    def _wait_for_end(self, server: ServerProcess, seconds: float, *, patient: bool) -> None:
        """Wait for the server's end and keep the lease meanwhile; a second signal to the watchdog cuts it short."""
        deadline = monotonic() + seconds
        poll = INTENT_POLL if server.ending is not None else READY_POLL
        while not server.ended() and (left := deadline - monotonic()) > 0 and (patient or self._stops.count < 2):  # noqa: PLR2004
            self._wait(min(left, poll), server)
            if monotonic() >= self._beat_at:
                self._beat_at = monotonic() + HEARTBEAT
                with contextlib.suppress(OSError, BalsamError):
                    self._held.beat()

    def _clean_up(self) -> None:
        """End the server, withdraw the address, give the lease back.

        In this order: once the address is withdrawn, clients may write to the database's files themselves, which the
        server must not do at the same time.
        """
        steps: Iterable[tuple[str, Callable[[], None]]] = (
            ("the server was not stopped", lambda: self._end_server(quick=False)),
            ("the address was not withdrawn", self._withdraw),
            ("the note for a bare --stop was not removed", lambda: user_servers.remove(self._db)),
            ("the request to stop was not removed", lambda: stop_request.forget_stop(self._db)),
            ("the lease was not removed", self._held.release),
        )
        for fault, step in steps:
            try:
                step()
            except (BalsamError, OSError) as err:
                logger.error("%s: %s", fault, err)  # noqa: TRY400  (no news in the traceback)
        logger.info("epoch=%d: stopped", self._epoch)

    def _withdraw(self) -> None:
        if self._held.is_ours():
            address.withdraw(self._db)
