"""Where calls run. ``NativeTransport`` runs them in this process, on a SQLAlchemy engine.

A transport knows nothing of what an operation does. It owes the caller three things: a call passes through the codec,
a write takes effect exactly once however often the transport sends it, and every fault comes back as one of
:mod:`balsam_core.errors`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from datetime import datetime  # noqa: TC003  (msgspec reads the annotation)
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from balsam_core.errors import BalsamError, Busy, Conflict, InvalidInput, OutcomeUnknown, SchemaMismatch, Unavailable
from balsam_core.model.calls import WINDOW, RequestId
from balsam_core.model.codec import decode_call, decode_result, encode, encode_call
from balsam_core.transport.deadlines import DeadlineEnforcer, bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from sqlalchemy import Connection, Engine

    from balsam_core.model.calls import Call
    from balsam_core.operations.execution import BulkInsert

__all__ = ["ClientSession", "EncodedTransport", "NativeTransport", "ServerStatus", "Transport", "fault_of"]

R = TypeVar("R")

TIMEOUT = 120.0  # seconds for one call, unless the caller says otherwise
FIRST_PAUSE = 0.002  # seconds before the first repetition
LONGEST_PAUSE = 0.5
COLLISIONS = 3  # repetitions after another client inserted the same key at the same moment


class ServerStatus(NamedTuple):
    """What the server behind a transport says of itself.

    Attributes:
        since: When it started, UTC.
        clients: Connections that it has now.
        calls: Calls that it has answered.
        epoch: Its number among the servers of this database.
    """

    since: datetime
    clients: int
    calls: int
    epoch: int


class Transport(ABC):
    """Runs calls on one database."""

    @abstractmethod
    def run(self, call: Call[R], *, timeout: float | None = None) -> R:
        """Run a call and return its answer.

        Args:
            call: What to do.
            timeout: Seconds until the caller wants an answer or an error; None for the transport's default.

        Raises:
            BalsamError: What the operation or the way to it says; see :mod:`balsam_core.errors`.
        """

    def server_status(self) -> ServerStatus | None:
        """Return what the server in between says of itself; None where there is none, or it can't say."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release connections; later calls raise Unavailable. Closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ClientSession:
    """Numbers the writes of one client. Threads may share it."""

    def __init__(self) -> None:
        self.client = os.urandom(16).hex()
        self._last = 0
        self._unanswered: set[int] = set()
        self._changed = threading.Condition()
        self._reads = count(1)

    def next_read(self) -> int:
        """Return the number of a new read."""
        return next(self._reads)

    @contextlib.contextmanager
    def request_id(self, deadline: float = float("inf")) -> Iterator[RequestId]:
        """Give the request id of a new write; at the end of the block it is answered and will not be sent again.

        Waits while a write of another thread is unanswered for so long that :data:`WINDOW` newer ones were made.

        Args:
            deadline: How long to wait, by the monotonic clock.

        Raises:
            Busy: It is over.
        """
        with self._changed:
            while self._unanswered and self._last - min(self._unanswered) >= WINDOW - 1:
                if not self._changed.wait(min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)):
                    msg = f"{WINDOW} writes of this program wait for answers; nothing was changed"
                    raise Busy(msg)
            self._last += 1
            self._unanswered.add(self._last)
            made = RequestId(self.client, self._last, min(self._unanswered) - 1)
        try:
            yield made
        finally:
            with self._changed:
                self._unanswered.discard(made.seq)
                self._changed.notify_all()


class EncodedTransport(Transport):
    """Runs calls as bytes, each write under a request id; a subclass says how in :meth:`perform`.

    Args:
        session: Numbers the writes; shared by transports of which one may finish what another began.
    """

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self._pid = os.getpid()
        self._closed = False

    def run(self, call: Call[R], *, timeout: float | None = None) -> R:
        """Run a call; see :meth:`Transport.run`."""
        self.check_open()
        kind = type(call)
        deadline = time.monotonic() + (TIMEOUT if timeout is None else timeout)
        data = encode_call(call)
        if not call.writes:
            return decode_result(kind, self.perform(kind, data, None, deadline))
        with self._session.request_id(deadline) as request_id:
            return decode_result(kind, self.perform(kind, data, request_id, deadline))

    def check_open(self) -> None:
        """Raise Unavailable where this transport is closed, or was carried over a fork."""
        if self._closed or os.getpid() != self._pid:
            why = "is closed" if self._closed else "was opened by another process; open it again after a fork"
            msg = f"the database connection {why}"
            raise Unavailable(msg)

    @abstractmethod
    def perform(self, kind: type[Call[R]], data: bytes, request_id: RequestId | None, deadline: float) -> bytes:
        """Run an encoded call and return the encoded answer; a write may have been sent before.

        Args:
            kind: The call's class.
            data: The encoded call.
            request_id: Identity of a write, None for a read.
            deadline: Until when an attempt may begin, by the monotonic clock.
        """


class NativeTransport(EncodedTransport):
    """Runs calls in this process.

    Deadlocks, serialization failures, busy databases and broken connections are repeated until the deadline.

    Args:
        engine: Gives connections; a connection with the execution option ``balsam_reads`` only reads and should see
            one consistent state.
        is_retryable: Whether a driver's error means that the same transaction may succeed when repeated.
        translate: The engine's own reading of a driver's error, None where it has none.
        session: Numbers the writes, where another transport to the same database shares the numbers.
        guard: Called inside each transaction before anything else; what it raises ends the transaction.

    Attributes:
        bulk_insert: Inserts many rows faster than the driver's ``executemany``; see ``balsam_bulk_insert``. Set by the
            core where the plugin has that hook.
        db_id: Id of the DB directory that the database must belong to; empty for any. Set by the core.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        is_retryable: Callable[[BaseException], bool],
        translate: Callable[[BaseException], BalsamError | None] | None = None,
        session: ClientSession | None = None,
        guard: Callable[[], None] | None = None,
    ) -> None:
        from balsam_core.operations.execution import DatabaseClock

        super().__init__(session or ClientSession())
        self.engine = engine
        self._is_retryable = is_retryable
        self._translate = translate
        self._guard = guard
        self.bulk_insert: BulkInsert | None = None
        self.db_id = ""
        self._clock = DatabaseClock()
        self._cutter = DeadlineEnforcer()
        self._checked = False

    def perform(self, kind: type[Call[R]], data: bytes, request_id: RequestId | None, deadline: float) -> bytes:
        """Run an encoded call; see :meth:`EncodedTransport.perform`."""
        self.check_open()
        call = decode_call(kind, data)
        commit = _Commit()
        with bounded(deadline):
            if request_id is None:
                return self._repeat(lambda: self._read(call, deadline), deadline, commit)
            return self._repeat(lambda: self._write(call, request_id, deadline, commit), deadline, commit)

    def close(self) -> None:
        """Close all connections."""
        if not self._closed:
            self._closed = True
            if os.getpid() == self._pid:
                self._cutter.close()
                self.engine.dispose()
            else:  # the connections are the parent's
                self.engine.dispose(close=False)

    def _read(self, call: Call[R], deadline: float) -> bytes:
        from balsam_core.operations.execution import read

        with self._connect(deadline) as plain, plain.execution_options(balsam_reads=True) as conn, conn.begin():
            self._check(conn)
            return encode(read(conn, call, self._clock))

    def _write(self, call: Call[R], request_id: RequestId, deadline: float, commit: _Commit) -> bytes:
        from balsam_core.operations.execution import AlreadyProcessed, replay, write

        commit.sent = False
        try:
            with self._connect(deadline) as conn, conn.begin():
                self._check(conn)
                reply = write(conn, call, request_id, self._clock, bulk_insert=self.bulk_insert)
                commit.sent = True  # in a moment
            return reply
        except AlreadyProcessed:
            with self._connect(deadline) as conn, conn.begin():
                self._check(conn)
                return replay(conn, call, request_id)

    @contextlib.contextmanager
    def _connect(self, deadline: float) -> Iterator[Connection]:
        from sqlalchemy.exc import DBAPIError

        try:
            conn = self.engine.connect()
        except (DBAPIError, BalsamError) as err:
            raise _NotConnectedError from err
        # Outermost, since the end of a connection waits for the server, too.
        with self._cutter.watching(conn.connection.driver_connection, deadline), conn:
            yield conn

    def _check(self, conn: Connection) -> None:
        if self._guard:
            self._guard()
        if not self._checked:
            from balsam_core.schema.version import check

            check(conn, self.db_id)
            self._checked = True

    def _repeat(self, attempt: Callable[[], bytes], deadline: float, commit: _Commit) -> bytes:
        """Run until it works, fails for good, or the deadline has passed."""
        import random

        from sqlalchemy.exc import SQLAlchemyError

        pause = FIRST_PAUSE
        collisions = 0
        unknown = False  # whether an earlier attempt may have been committed
        while True:
            try:
                return attempt()
            except OverflowError as err:  # from a driver that checks before it asks the database
                raise InvalidInput(f"a number is out of the database's range: {err}") from err
            except (SQLAlchemyError, _NotConnectedError) as err:
                cause = err.__cause__ if isinstance(err, _NotConnectedError) and err.__cause__ else err
                if isinstance(cause, BalsamError):  # a plugin's or connector's last word, which ends the call
                    if not unknown:
                        raise cause from cause.__cause__
                    raise _unknown(cause) from cause
                fault = fault_of(cause, self._is_retryable, self._translate)
                if cause is not err and isinstance(fault, OutcomeUnknown):  # nothing was sent
                    fault = Unavailable(fault.message)
                unknown = unknown or (isinstance(fault, OutcomeUnknown) and commit.sent)
                collisions += isinstance(fault, Conflict)
                connecting = cause is not err and type(fault) is Unavailable
                repeat = connecting or isinstance(fault, (Busy, OutcomeUnknown)) or 0 < collisions <= COLLISIONS
                if not repeat or time.monotonic() + pause > deadline:
                    if unknown:
                        fault = _unknown(cause)
                    elif isinstance(fault, OutcomeUnknown):
                        fault = Unavailable(fault.message)
                    raise fault from cause
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  (not for secrets: it spreads repetitions out)
            pause = min(pause * 2, LONGEST_PAUSE)


def fault_of(
    err: BaseException,
    is_retryable: Callable[[BaseException], bool],
    translate: Callable[[BaseException], BalsamError | None] | None,
) -> BalsamError:
    """Map an SQLAlchemy error to ours: the one seam.

    Busy, OutcomeUnknown (the connection broke) and Conflict (two inserted the same at once) may pass by repeating.
    """
    from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError

    text = _text(err)
    if not isinstance(err, DBAPIError) or err.orig is None:
        return Unavailable(f"the database did not do what it was asked ({text})")
    # First of all: a COMMIT that the server answered by an error and its own end may be found committed.
    if err.connection_invalidated:
        return OutcomeUnknown(f"the connection broke ({text})")
    fault: BalsamError | None = None
    if is_retryable(err.orig):
        fault = Busy(f"the database was kept busy by others until the time was over ({text})")
    elif translate:
        fault = translate(err.orig)
    if fault is not None:
        return fault
    if isinstance(err, IntegrityError):
        return Conflict(f"the database refused the write ({text})")
    if isinstance(err, (OperationalError, ProgrammingError)) and "schema_version" in text:
        return SchemaMismatch(f"the database has no tables ({text}); run: balsam init PATH")
    return Unavailable(f"the database reported an error ({text})")


class _Commit:
    """Whether the present attempt may have been committed: a transaction whose connection breaks earlier is not."""

    sent = False


class _NotConnectedError(Exception):
    """No connection could be made; the cause says why."""


def _unknown(cause: BaseException) -> OutcomeUnknown:
    """Return the error for a write that an earlier attempt may have done."""
    return OutcomeUnknown(f"the connection broke, and the write may or may not have been applied ({_text(cause)})")


def _text(err: BaseException) -> str:
    """Return the driver's message on one line."""
    return " ".join(str(getattr(err, "orig", None) or err).split())
