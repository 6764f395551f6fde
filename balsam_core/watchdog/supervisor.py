"""The watchdog's loop: it keeps the server of one DB directory running and its address published.

One thread around one ``poll``; it knows nothing about databases. It holds the lease, and it alone writes the address.
"""

from __future__ import annotations

import contextlib
import logging
import math
import select
import signal
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.dbdir import address
from balsam_core.dbdir.lease import EXPIRY, HEARTBEAT
from balsam_core.errors import BalsamError
from balsam_core.system import logs, network
from balsam_core.system.files import describe_error, reason, shown
from balsam_core.watchdog import stop_request, user_servers
from balsam_core.watchdog.failures import WORKS_AFTER, Failure, RepeatedFailures, explain_end, explain_error, one_line
from balsam_core.watchdog.health import Health
from balsam_core.watchdog.publisher import Publisher
from balsam_core.watchdog.server_process import READY_POLL, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.backends.registry import Backend
    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.lease import HeldLease
    from balsam_core.system.signals import StopRequests
    from balsam_core.watchdog.options import ServerOptions

logger = logging.getLogger(__name__)

FIRST_ATTEMPTS = 3  # starts that may fail before the first success; later see `failures`
MAX_PAUSE = 2.0  # seconds between two restarts; clients resume within 5 s once the cause is gone
HEALTHY_AFTER = 1.0  # seconds of service, after which the next failure counts as the first one
STOP_REQUEST_POLL = 0.5  # seconds between two checks for a request to stop
READY_TIMEOUT = 0.25  # seconds that a probe of a starting server may take
PUBLISH_PAUSE = 1.0  # seconds until an address that could not be written is written again
QUICK_STOP = 0.5  # seconds for each stop signal when there is no time for more


class SupervisorState(Enum):
    """How far the server is."""

    STOPPED = "stopped"  # there is no server; one is started when it is time
    STARTING = "starting"  # it runs, and doesn't answer yet
    READY = "ready"  # it answers, and its address is not published yet
    PUBLISHED = "published"  # its address is published


class SupervisorOutcome(Enum):
    """How a watchdog's work ended."""

    STOPPED = "stopped"  # it was asked to stop, and all is cleaned up
    REPLACED = "replaced"  # another watchdog has the lease; the server is stopped, the address is not ours any more
    GIVEN_UP = "given up"  # the server can't work; everybody is told why


class Supervisor:
    """Keeps the server of one DB directory running.

    The signals in ``stops`` ask for the end; ``on_ready`` gets the address once it is published for the first time.

    Attributes:
        state: How far the server is.
        server: The server; None while the state is STOPPED.
        failures: How many servers failed one after the other.
        outcome: How the work ended; None before.
    """

    def __init__(
        self,
        db: DBDir,
        backend: Backend,
        held: HeldLease,
        options: ServerOptions,
        stops: StopRequests,
        on_ready: Callable[[Address], None],
    ) -> None:
        self.state = SupervisorState.STOPPED
        self.server: ServerProcess | None = None
        self.failures = 0
        self.outcome: SupervisorOutcome | None = None
        self._db = db
        self._backend = backend
        self._held = held
        self._options = options
        self._stops = stops
        self._on_ready = on_ready
        self._repeated = RepeatedFailures()
        self._failed_before = address.failure(db) is not None
        self._publisher = Publisher(db, held, options.host)
        self._port = options.port or options.preferred_port
        self._health: Health
        self._published_at: float | None = None  # None before the first publication
        self._next_step_at = 0.0
        self._next_stop_check_at = 0.0
        self._next_heartbeat_at = 0.0
        self._last_heartbeat = monotonic()

    def run(self) -> SupervisorOutcome:
        """Serve until the end.

        Raises:
            BalsamError: The server could not be started a first time, or was given up; all is cleaned up.
            OSError: The same.
        """
        user_servers.add(self._db)
        try:
            while self.outcome is None:
                self.run_once()
        except BaseException as err:
            logger.error("the watchdog ends: %r", err)  # noqa: TRY400  (who catches it logs the traceback)
            self._clean_up(err)
            raise
        if self.outcome is SupervisorOutcome.GIVEN_UP and (failure := address.failure(self._db)):
            raise failure
        return self.outcome

    def run_once(self) -> None:
        """Wait for the next event and act on it; after the last one the outcome is set."""
        due = min(self._next_step_at, self._next_stop_check_at, self._next_heartbeat_at, self._publisher.look_at)
        self._wait(max(0.0, due - monotonic()))
        now = monotonic()
        if not self._keep_lease(now):
            self._give_way()
        elif who := self._find_stop_request(now):
            logger.info("generation=%d: stopping: asked by %s", self._publisher.generation, who)
            self._clean_up()
            self.outcome = SupervisorOutcome.STOPPED
        else:
            try:
                self._publisher.keep(now)
                self._advance(now)
            except (BalsamError, OSError) as err:
                if self._published_at is None:
                    raise
                self._handle_failure(explain_error(err))

    def _advance(self, now: float) -> None:
        """Take the next step towards a published server, or check the one that is published."""
        server = self.server
        if server is None:
            if now >= self._next_step_at:
                self._start_server()
        elif server.ended():
            self._handle_failure(explain_end(server))
        elif self.state is SupervisorState.STARTING:
            self._check_ready(server)
        elif now < self._next_step_at:
            pass
        elif self.state is SupervisorState.READY:
            self._publish(server)
        elif fault := self._health.check():
            self._handle_failure(Failure(fault, passes=True))
        else:
            self._next_step_at = self._health.due
            self._forget_failures(now)

    # ---- waiting

    def _wait(self, seconds: float) -> None:
        """Wait for signals, the server's end or output, at most so long."""
        if self.server is not None:
            self.server.wait(seconds, self._stops.descriptor)
        else:
            select.select([self._stops.descriptor], [], [], seconds)
        self._stops.drain()

    def _find_stop_request(self, now: float) -> str | None:
        """Return who wants the server to stop; None when nobody does."""
        if self._stops.number is not None:
            return signal.Signals(self._stops.number).name
        if now < self._next_stop_check_at:
            return None
        self._next_stop_check_at = now + STOP_REQUEST_POLL
        return stop_request.stop_asked(self._db, self._held.lease)

    # ---- the lease

    def _keep_lease(self, now: float) -> bool:
        """Refresh the lease when it is time; say whether it is still ours."""
        if now < self._next_heartbeat_at:
            return True
        self._next_heartbeat_at = now + HEARTBEAT
        try:
            ours = self._held.refresh()
        except OSError as err:
            silent = now - self._last_heartbeat
            logger.warning("the lease can't be refreshed: %s", reason(err))
            if silent > EXPIRY - HEARTBEAT and self.server is not None:
                # Another machine may take it now. A server is started again once the lease turns out to be ours still.
                why = f"must stop: the lease was not refreshed for {silent:.0f} s"
                self._handle_failure(Failure(why, passes=True))
            return True
        self._last_heartbeat = now
        return ours

    def _update_lease(self, **changes: object) -> None:
        """Change what the lease says; a full disk must not end the server."""
        try:
            if not self._held.update(**changes):
                self._give_way()
        except OSError as err:
            logger.warning("the lease can't be changed: %s", reason(err))

    def _give_way(self) -> None:
        """End the server at once; the address belongs to whoever took the lease."""
        logger.error(
            "generation=%d: the lease was taken by another watchdog or removed; this one ends",
            self._publisher.generation,
        )
        self._stop_server(max_seconds=QUICK_STOP)
        self.outcome = SupervisorOutcome.REPLACED

    # ---- starting

    def _start_server(self) -> None:
        if not self._held.is_ours():
            self._give_way()
            return
        host = self._options.host
        port = network.choose_port(host, fixed=self._options.port, preferred=self._port)
        plan = self._backend.start_server(self._db, host, port, tls=self._options.tls)
        self.server = server = ServerProcess(self._db, plan)
        self.state, self._port = SupervisorState.STARTING, port
        self._next_step_at = monotonic() + READY_POLL
        self._update_lease(
            child_pid=server.pid,
            child_start=server.start,
            stop=list(plan.stop),
            restarts=self._held.lease.restarts + (self._published_at is not None),
        )
        logger.info("server pid=%d: started on %s port %d", server.pid, host, port)

    def _check_ready(self, server: ServerProcess) -> None:
        """Probe a server that is starting, and publish it once it answers."""
        self._next_step_at = monotonic() + READY_POLL
        if server.check_ready(READY_TIMEOUT):
            self.state = SupervisorState.READY
            self._publish(server)

    def _publish(self, server: ServerProcess) -> None:
        """Publish the address of a server that is ready."""
        try:
            if not self._held.is_ours():
                self._give_way()
                return
            published = self._publisher.publish(server.address())
        except (BalsamError, OSError) as err:
            if self._published_at is None:
                raise
            logger.warning("generation=%d: the address can't be published: %s", self._publisher.generation + 1, err)
            self._next_step_at = monotonic() + PUBLISH_PAUSE
            return
        self.state = SupervisorState.PUBLISHED
        self._health = Health(server)
        self._next_step_at = self._health.due
        self._update_lease(generation=self._publisher.generation)
        if self.outcome is not None:
            return
        logger.info(
            "generation=%d: server pid=%d is ready at %s after %.2f s",
            self._publisher.generation,
            server.pid,
            published.endpoint,
            server.age,
        )
        if self._published_at is None:
            self._on_ready(published)
        self._published_at = monotonic()

    # ---- ending

    def _forget_failures(self, now: float) -> None:
        """Begin to count anew once the server has worked for a while."""
        if self._held.lease.failure and now - (self._published_at or now) >= WORKS_AFTER:
            self._repeated.forget()
            self._update_lease(failure="")

    def _handle_failure(self, failure: Failure) -> None:
        """End what is left of the server, and plan the next start, unless it makes no sense any more."""
        server = self.server
        if self.state is SupervisorState.PUBLISHED:
            self._forget_failures(monotonic())
        healthy = self.state is SupervisorState.PUBLISHED and monotonic() - (self._published_at or 0.0) > HEALTHY_AFTER
        self.failures = 1 if healthy else self.failures + 1
        self._stop_server(max_seconds=QUICK_STOP)
        pause = 0.0 if self.failures == 1 else min(MAX_PAUSE, 0.1 * 2.0 ** min(self.failures - 2, 10))
        logger.error(
            "generation=%d: server%s %s; started again in %.1f s; its last output: %s",
            self._publisher.generation,
            f" pid={server.pid}" if server else "",
            failure.reason,
            pause,
            " | ".join(server.last_lines if server else []) or "none",
        )
        if server is not None and self._published_at is None:
            if self.failures >= FIRST_ATTEMPTS:
                raise failure.error_class(f"the server of {shown(self._db.path)} {failure.reason}")
            self._port = self._options.port  # another one, unless it is fixed: it may have been taken in the meantime
        self._next_step_at = monotonic() + pause
        if self._published_at is None or self.outcome is not None:
            return
        self._update_lease(failure=failure.reason)
        if self._repeated.add(failure) and self.outcome is None:
            self._give_up(failure)

    def _give_up(self, failure: Failure) -> None:
        """Tell everybody that the server can't work; where that can't be told, go on."""
        reason = f"it failed {self._repeated.count} times in the same way, the last time it {failure.reason}"
        try:
            self._publish_failure(failure.error_class, reason)
        except (BalsamError, OSError) as err:
            logger.warning(
                "generation=%d: it can't be told that the server can't work: %s", self._publisher.generation, err
            )
            return
        logger.error("generation=%d: the server is given up: %s", self._publisher.generation, reason)
        self.outcome = SupervisorOutcome.GIVEN_UP
        self._clean_up()

    def _publish_failure(self, kind: type[BalsamError], reason: str) -> None:
        directory = self._held.lease.directory
        address.publish_failure(self._db, kind, one_line(reason), directory=directory, log=logs.current())

    def _stop_server(self, *, max_seconds: float = math.inf) -> None:
        """Stop the server and wait for its end; a second signal to the watchdog shortens that."""
        if self.server is not None:
            self.server.stop(self._wait_and_refresh, max_seconds=max_seconds, is_urgent=lambda: self._stops.count > 1)
        self.state, self.server = SupervisorState.STOPPED, None
        self._publisher.forget()

    def _wait_and_refresh(self, seconds: float) -> None:
        """Wait for an event of a server that is being stopped, and keep the lease."""
        self._wait(seconds)
        if monotonic() >= self._next_heartbeat_at:
            self._next_heartbeat_at = monotonic() + HEARTBEAT
            with contextlib.suppress(OSError):
                self._held.refresh()

    def _clean_up(self, error: BaseException | None = None) -> None:
        """End the server, withdraw the address, give the lease back; ``error`` is why the watchdog ends.

        In this order: once the address is withdrawn, clients may write to the database's files themselves, which the
        server must not do at the same time.
        """
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("the server was not stopped", self._stop_server),
            ("the address was not withdrawn", lambda: self._withdraw_address(error)),
            ("the note for a bare --stop was not removed", lambda: user_servers.remove(self._db)),
            ("the request to stop was not removed", lambda: stop_request.forget_stop(self._db)),
            ("the lease was not removed", self._held.release),
        )
        for fault, step in steps:
            try:
                step()
            except (BalsamError, OSError) as err:
                logger.error("%s: %s", fault, err)  # noqa: TRY400  (the traceback adds nothing)
        logger.info("generation=%d: stopped", self._publisher.generation)

    def _withdraw_address(self, error: BaseException | None) -> None:
        if self.outcome is SupervisorOutcome.GIVEN_UP or not self._held.is_ours():
            return
        if self._failed_before and self._published_at is None and isinstance(error, (BalsamError, OSError)):
            # Another chance was of no use: nobody may use the DB past its server now, either.
            self._publish_failure(type(error) if isinstance(error, BalsamError) else BalsamError, describe_error(error))
        else:
            address.withdraw(self._db)
