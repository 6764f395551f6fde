"""``NativeTransport``: runs calls in this process, on an SQLAlchemy engine."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from typing import TYPE_CHECKING, TypeVar

from balsam_core.errors import BalsamError, Busy, Conflict, InvalidInput, NoResources, OutcomeUnknown, Unavailable
from balsam_core.model.codec import decode_call, encode
from balsam_core.system.shortages import shortage
from balsam_core.transport.base import ClientSession, EncodedTransport
from balsam_core.transport.deadlines import DeadlineEnforcer, bounded
from balsam_core.transport.driver_errors import blame_schema, driver_text, to_balsam_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import Call, RequestId
    from balsam_core.operations.execution import BulkInsert

logger = logging.getLogger(__name__)

R = TypeVar("R")

FIRST_PAUSE = 0.002  # seconds before the first repetition
LONGEST_PAUSE = 0.5
SILENCE = 5.0  # seconds without the database, after which the user is told why a call waits
_CHECKED = "balsam_checked"  # in SQLAlchemy's notes on a connection of the driver
SHORTAGE_PATIENCE = 5.0  # seconds to wait for file descriptors or memory, which only others may give back
MOST_KEY_CONFLICTS = 3  # repetitions after another client inserted the same key at the same moment


class NativeTransport(EncodedTransport):
    """Runs calls in this process.

    Deadlocks, serialization failures, busy databases and broken connections are repeated until the deadline.

    Args:
        engine: Gives connections. A connection with the execution option ``balsam_reads`` only reads and should see
            one consistent state.
        db: The DB directory; a database that belongs to another one is refused.
        is_retryable: Whether a driver's error means that the same transaction may succeed when repeated.
        translate: The plugin's mapping of a driver's error to one of ours, None for an error that it doesn't know.
        session: Numbers the requests, where another transport to the same database shares the numbers.
        guard: Called inside each transaction before anything else; what it raises ends the transaction.

    Attributes:
        db: The DB directory, None for any. Set by the core where a plugin doesn't.
        bulk_insert: Inserts many rows faster than the driver's ``executemany``; see ``balsam_bulk_insert``. Set by the
            core where the plugin has that hook.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        db: DBDir | None = None,
        is_retryable: Callable[[BaseException], bool],
        translate: Callable[[BaseException], BalsamError | None] | None = None,
        session: ClientSession | None = None,
        guard: Callable[[], None] | None = None,
    ) -> None:
        from balsam_core.operations.execution import DatabaseClock

        super().__init__(session or ClientSession())
        self.engine = engine
        self.db = db
        self.bulk_insert: BulkInsert | None = None
        self._is_retryable = is_retryable
        self._translate = translate
        self._guard = guard
        self._clock = DatabaseClock()
        self._deadlines = DeadlineEnforcer()

    def perform(self, kind: type[Call[R]], data: bytes, request_id: RequestId | None, deadline: float) -> bytes:
        """Run an encoded call; see :meth:`EncodedTransport.perform`."""
        self.check_open()
        call = decode_call(kind, data)
        commit = _Commit()
        with bounded(deadline):
            if request_id is None:
                return self._run_until_deadline(lambda: self._read(call, deadline), deadline, commit)
            return self._run_until_deadline(lambda: self._write(call, request_id, deadline, commit), deadline, commit)

    def close(self) -> None:
        """Close all connections."""
        if not self._closed:
            self._closed = True
            if os.getpid() == self._pid:
                self._deadlines.close()
                self.engine.dispose()
            else:  # the connections are the parent's
                self.engine.dispose(close=False)

    def _read(self, call: Call[R], deadline: float) -> bytes:
        from balsam_core.operations.execution import read

        with self._connect(deadline) as plain, plain.execution_options(balsam_reads=True) as conn, conn.begin():
            self._check_database(conn)
            return encode(read(conn, call, self._clock))

    def _write(self, call: Call[R], request_id: RequestId, deadline: float, commit: _Commit) -> bytes:
        from balsam_core.operations.execution import AlreadyProcessed, replay, touch, write

        commit.sent = False
        try:
            with self._connect(deadline) as conn, conn.begin():
                self._check_database(conn)
                reply = write(conn, call, request_id, self._clock, bulk_insert=self.bulk_insert)
                commit.sent = True  # at the end of the block
            return reply
        except AlreadyProcessed:
            commit.unknown = True  # whether the replicas have it, where there are any
            with self._connect(deadline) as conn, conn.begin():
                self._check_database(conn)
                touch(conn, request_id, self._clock)
                return replay(conn, call, request_id)

    @contextlib.contextmanager
    def _connect(self, deadline: float) -> Iterator[Connection]:
        from sqlalchemy.exc import DBAPIError

        try:
            conn = self.engine.connect()
        except (DBAPIError, BalsamError, OSError, ImportError) as err:
            raise _NotConnectedError from err
        # Outermost, since closing a connection waits for the server, too.
        with self._deadlines.watching(conn.connection.driver_connection, deadline), conn:
            yield conn

    def _check_database(self, conn: Connection) -> None:
        """Check in the first transaction of each connection that this is the right database, of the right version."""
        if self._guard:
            self._guard()
        if _CHECKED not in conn.info:
            from balsam_core.schema.version import check

            check(conn, self.db.id if self.db else "")
            conn.info[_CHECKED] = True

    def _look_again(self, deadline: float) -> None:
        """Check whether this still is the right database, of the right version: somebody may have changed it."""
        with self._connect(deadline) as conn, conn.begin():
            conn.info.pop(_CHECKED, None)
            self._check_database(conn)

    def _explain(self, err: BaseException) -> BalsamError:
        return to_balsam_error(err, self._is_retryable, self._translate)

    def _run_until_deadline(self, attempt: Callable[[], bytes], deadline: float, commit: _Commit) -> bytes:
        """Run until it works, fails for good, or the deadline has passed."""
        import random

        from sqlalchemy.exc import SQLAlchemyError

        pause = FIRST_PAUSE
        conflicts = 0
        tell_at = time.monotonic() + SILENCE
        patience = min(deadline, time.monotonic() + SHORTAGE_PATIENCE)
        while True:
            try:
                return attempt()
            except OverflowError as err:  # from a driver that checks before it asks the database
                raise InvalidInput(f"a number is out of the database's range: {err}") from err
            except (SQLAlchemyError, _NotConnectedError, OSError, ImportError) as err:
                connected = not isinstance(err, _NotConnectedError)
                cause = err if connected else err.__cause__ or err
                lack = cause if isinstance(cause, NoResources) else shortage(cause)
                if lack or isinstance(cause, (OSError, ImportError)):
                    commit.unknown = commit.unknown or (connected and commit.sent)
                    if not lack or time.monotonic() + pause > patience:
                        raise (_outcome_unknown(cause) if commit.unknown else lack or cause) from cause
                    time.sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE)
                    continue
                if isinstance(cause, BalsamError):  # from a plugin or connector: no repetition helps
                    if not commit.unknown:
                        raise cause from cause.__cause__
                    raise _outcome_unknown(cause) from cause
                error = self._explain(cause)
                if isinstance(error, OutcomeUnknown):
                    commit.unknown = commit.unknown or (connected and commit.sent)
                    error = Unavailable(error.message)  # nothing of this attempt was committed, or `commit` says so
                    repeat = True
                elif isinstance(error, Conflict):
                    conflicts += 1
                    repeat = conflicts <= MOST_KEY_CONFLICTS
                else:
                    repeat = isinstance(error, Busy) or (not connected and type(error) is Unavailable)
                if not repeat or time.monotonic() + pause > deadline:
                    error = blame_schema(error, lambda: self._look_again(deadline), self._explain)
                    raise (_outcome_unknown(cause) if commit.unknown else error) from cause
            if type(error) is Unavailable and time.monotonic() > tell_at and self._is_explained(cause):
                tell_at = math.inf
                left = deadline - time.monotonic()
                logger.warning("Waiting for the database, for %.0f s more at most: %s", left, error)
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  (not for secrets: it spreads repetitions out)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _is_explained(self, cause: BaseException) -> bool:
        """Say whether a server itself has said why it can't be used now; one that is gone may soon be back."""
        reported = getattr(cause, "orig", None)
        return bool(self._translate and reported is not None and self._translate(reported))


class _Commit:
    """What is known of the COMMIT of a call.

    Attributes:
        sent: Whether that of the present attempt may have been sent.
        unknown: Whether an earlier attempt may have been committed.
    """

    sent = False
    unknown = False


class _NotConnectedError(Exception):
    """No connection could be made; the cause says why."""


def _outcome_unknown(cause: BaseException) -> OutcomeUnknown:
    """Return the error for a write that an earlier attempt may have committed."""
    text = driver_text(cause)
    return OutcomeUnknown(f"the connection broke, and the write may or may not have been applied ({text})")
