"""Group commit: many calls in one transaction, each for itself.

A commit waits for the disk, so calls that arrive together share one. A savepoint around each keeps a failing call from
undoing the others. An engine without savepoints has one call in a transaction. No call is answered before the COMMIT is
durable. Knows engines and operations, not sockets.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from balsam_core.errors import (
    BackendError,
    BalsamError,
    Busy,
    InvalidInput,
    OutcomeUnknown,
    SchemaMismatch,
    Unavailable,
)
from balsam_core.model.codec import decode_call, encode
from balsam_core.operations import execution
from balsam_core.operations.writer_cache import WriterCache
from balsam_core.proxy.server.answers import Answer, PendingWrite, error_answer, expired, lacks
from balsam_core.schema.tables import meta
from balsam_core.schema.version import check
from balsam_core.system.failpoints import failpoint
from balsam_core.system.files import reason
from balsam_core.transport.driver_errors import blame_schema, driver_text, to_balsam_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from balsam_core.model.calls import Call
    from balsam_core.proxy.single_writer import SingleWriter

logger = logging.getLogger(__name__)

SAVEPOINT = "SAVEPOINT balsam_call"
RELEASE = "RELEASE SAVEPOINT balsam_call"
EPOCH = "SELECT value FROM meta WHERE name = 'epoch'"
UNDO = "ROLLBACK TO SAVEPOINT balsam_call"
TRIAL = "INSERT INTO meta (name, value) VALUES ('savepoint trial', '')"
DOUBLED = "INSERT INTO meta (name, value) VALUES ('epoch', '')"  # its key is there
TRIALS = "SELECT count(*) FROM meta WHERE name = 'savepoint trial'"
GROUP_CALLS = 512  # in one transaction
PAUSE = 0.01  # seconds between attempts to begin while another program holds the database
FIRST_BEGIN_TIMEOUT = 30.0  # seconds for programs that had the database open before


class FencedError(Exception):
    """Another server has taken over this database: this one must not write again."""


class HeldError(Exception):
    """Another program holds the database: nothing was done yet, try again later."""


class BatchLostError(Exception):
    """Nobody knows what the database kept: the server must end without answering, and its clients repeat.

    Attributes:
        error: Why.
    """

    def __init__(self, error: BalsamError) -> None:
        super().__init__(error.message)
        self.error = error


class GroupWriter:
    """The only writer of a database.

    Args:
        single: The engine.
        db_id: Id of the DB directory that the database must belong to; empty for any.

    Attributes:
        epoch: The fencing token: its number among the servers of this database. A server with a smaller one can't
            commit any more.
        most_calls: How many calls :meth:`run` takes at once.

    Raises:
        BackendError: The engine's savepoints don't work.
        BalsamError: The engine can't be opened, or the database is not this DB's.
    """

    def __init__(self, single: SingleWriter, db_id: str = "") -> None:
        self._single = single
        self._db_id = db_id
        self.most_calls = GROUP_CALLS if single.savepoints else 1
        self._engine: Engine = single.open_engine("server")
        self._error = self._engine.dialect.loaded_dbapi.Error
        self._clock = execution.DatabaseClock()
        self._version: object = None
        try:
            # SQLAlchemy's own transactions cost 60 us each; this one process needs none of what they take care of.
            self._conn = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._cursor = self._conn.connection.cursor()
            self._cache = WriterCache(self._cursor)
            self.epoch = self._take_epoch()
        except SQLAlchemyError as err:
            raise self._to_error(err) from err
        except BatchLostError as err:
            raise err.error from None
        except HeldError as err:
            raise Busy("another program holds the database, so that the server can't begin") from err

    def run(self, writes: Sequence[PendingWrite]) -> list[Answer]:
        """Run calls in one transaction; when this returns, what it says is durable.

        Args:
            writes: At most :attr:`most_calls`.

        Raises:
            HeldError: Another program holds the database; nothing was written.
            FencedError: Another server has taken over; nothing was written.
            BatchLostError: Nobody knows what was written.
        """
        committing = False
        try:
            self._begin_as_newest()
            self._drop_stale_cache()
            answers = [self._run_one(write) for write in writes]
            failpoint("before_commit")
            committing = True
            self._execute("COMMIT")
        except SQLAlchemyError as err:
            self._cache.rolled_back()
            fatal = self._is_fatal(err, committing=committing)
            # The engine may have ended the transaction by itself.
            with contextlib.suppress(SQLAlchemyError):
                self._execute("ROLLBACK")
            if fatal:
                raise BatchLostError(self._to_error(err)) from err
            error = self._explain(err)
            refusal = error_answer(error)
            logger.warning("%d calls failed together: %s", len(writes), error)
            # One that was sent before may have taken effect then, and must not be told that nothing was written.
            return [self._settle_outside(write, refusal) for write in writes]
        failpoint("after_commit")
        self._cache.committed()
        return answers

    def read(self, kind: type[Call[Any]], data: bytes) -> Answer:
        """Run a call that reads, for an engine that nobody else may open.

        Raises:
            BatchLostError: The database can't be read any more.
        """
        try:
            self._begin()
            try:
                return Answer("", encode(execution.read(self._conn, decode_call(kind, data), self._clock)))
            finally:
                self._execute("ROLLBACK")
        except BalsamError as err:
            return error_answer(err)
        except HeldError:
            return error_answer(Busy("another program holds the database"))
        except SQLAlchemyError as err:
            if self._is_fatal(err):
                raise BatchLostError(self._to_error(err)) from err
            return error_answer(self._explain(err))
        except Exception as err:  # noqa: BLE001  (see _unexpected)
            return self._unexpected(kind, err)

    def close(self) -> None:
        """Close the database."""
        self._cursor.close()
        self._conn.close()
        self._engine.dispose()

    def refuse_late(self, write: PendingWrite) -> Answer:
        """Return the answer of a call whose deadline has passed: a refusal, unless it took effect before.

        Raises:
            BatchLostError: The database can't be read any more.
        """
        return self._settle_outside(write, expired(write))

    def _settle_outside(self, write: PendingWrite, otherwise: Answer) -> Answer:
        """Do as :meth:`_settle`, outside a transaction."""
        try:
            return self._settle(write, otherwise)
        except SQLAlchemyError as err:
            if self._is_fatal(err):
                raise BatchLostError(self._to_error(err)) from err
            error = self._explain(err)
            # Nor will it ever say it. The client knows whether it has sent the write before.
            if isinstance(error, (BackendError, SchemaMismatch)):
                return error_answer(error)
            return error_answer(OutcomeUnknown(f"the database can't say whether it has the write: {error}"))

    def _settle(self, write: PendingWrite, otherwise: Answer | None = None) -> Answer:
        """Return the stored answer of a call that took effect, or was refused, before; else the other one, if any."""
        try:
            return Answer("", execution.replay(self._conn, decode_call(write.kind, write.data), write.request_id))
        except BalsamError as err:
            return otherwise if otherwise and isinstance(err, OutcomeUnknown) else error_answer(err)
        except SQLAlchemyError:
            raise
        except OSError as err:
            return error_answer(OutcomeUnknown(f"the database can't say whether it has the write: {reason(err)}"))
        except Exception as err:  # noqa: BLE001  (see _unexpected)
            return self._unexpected(write.kind, err)

    def _run_one(self, write: PendingWrite) -> Answer:
        """Run one call so that it can be undone alone."""
        try:
            call = decode_call(write.kind, write.data)
        except BalsamError as err:
            return error_answer(err)
        if time.monotonic() > write.deadline:
            return self._settle(write, expired(write))
        if self._single.savepoints:
            self._execute(SAVEPOINT)
        try:
            answer = Answer("", execution.write(self._conn, call, write.request_id, self._clock, self._cache))
        except execution.AlreadyProcessed:
            self._undo()
            answer = self._settle(write)
        except BalsamError as err:
            self._undo()
            self._refuse(write, err)
            answer = error_answer(err)
        except SQLAlchemyError as err:
            if self._single.is_fatal and self._is_fatal(err):
                raise
            self._undo(err)
            error = self._explain(err)
            if not isinstance(error, Unavailable):
                self._refuse(write, error)
            answer = error_answer(error)
        except Exception as err:  # noqa: BLE001  (see _unexpected)
            self._undo()
            answer = self._unexpected(write.kind, err)
        else:
            if self._single.savepoints:
                self._execute(RELEASE)
        return answer

    def _refuse(self, write: PendingWrite, err: BalsamError) -> None:
        execution.refuse(self._conn, write.request_id, self._clock, self._cache, err)

    @staticmethod
    def _unexpected(kind: type[Call[Any]], err: Exception) -> Answer:
        """Return the answer to an error that the operation did not foresee; no call may end the server."""
        if isinstance(err, OverflowError):
            return error_answer(InvalidInput(f"a number is out of the database's range: {err}"))
        if isinstance(err, OSError):
            return error_answer(lacks(kind.operation(), err))
        logger.error("%s failed", kind.operation(), exc_info=err)
        return error_answer(BalsamError(f"{kind.operation()} failed in the server ({err!r}); see its log"))

    def _undo(self, cause: SQLAlchemyError | None = None) -> None:
        self._cache.rolled_back()
        if not self._single.savepoints:  # it is the only call of the transaction
            self._execute("ROLLBACK")
            self._begin_as_newest()
            return
        try:
            self._execute(UNDO)
            self._execute(RELEASE)
        except SQLAlchemyError as err:
            # The engine has ended the whole transaction.
            raise (cause or err) from err

    def _execute(self, statement: str) -> None:
        try:
            self._cursor.execute(statement)
        except self._error as err:
            raise DBAPIError.instance(statement, None, err, self._error) from err

    def _begin(self, timeout: float = 0.0) -> None:
        """Begin a transaction; wait so many seconds for another program that holds the database.

        Raises:
            HeldError: It still does.
            BatchLostError: The database was replaced by another one; nothing was written.
        """
        until = time.monotonic() + timeout
        while True:
            try:
                self._execute(self._single.begin)
            except SQLAlchemyError as err:
                if not self._single.is_retryable(getattr(err, "orig", None) or err):
                    raise
                if time.monotonic() >= until:
                    raise HeldError from err
            else:
                break
            time.sleep(PAUSE)
        if self._single.is_replaced and self._single.is_replaced():
            raise BatchLostError(Unavailable("its file was replaced while the server had it open"))

    def _begin_as_newest(self) -> None:
        """Begin a transaction, unless a newer server has taken over.

        Raises:
            HeldError: Another program holds the database.
            FencedError: There is a newer server.
        """
        self._begin()
        if self._read_epoch() != self.epoch:
            self._execute("ROLLBACK")
            raise FencedError

    def _take_epoch(self) -> int:
        self._begin(FIRST_BEGIN_TIMEOUT)
        if self._single.secure:
            self._single.secure()
        try:
            check(self._conn, self._db_id)
            epoch = self._read_epoch() + 1
            self._conn.execute(update(meta).where(meta.c.name == "epoch").values(value=str(epoch)))
            if self._single.savepoints:
                self._try_savepoints(epoch)
        except BalsamError:
            with contextlib.suppress(SQLAlchemyError):
                self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")
        return epoch

    def _try_savepoints(self, epoch: int) -> None:
        """Undo a write, then one with an error of the driver, in the transaction that has written the epoch.

        Raises:
            BackendError: Something else was undone, or the engine has no savepoints.
        """
        for failing in (False, True):
            try:
                self._execute(SAVEPOINT)
                self._execute(TRIAL)
                if failing:
                    with contextlib.suppress(IntegrityError):
                        self._execute(DOUBLED)
                        raise BackendError("the engine stores a second row with the key of another one")
                self._execute(UNDO)
                self._execute(RELEASE)
                self._execute(TRIALS)
                row = self._cursor.fetchone()
                right = row is not None and row[0] == 0 and self._read_epoch() == epoch
            except SQLAlchemyError as err:
                raise BackendError(f"{_SAVEPOINTS}: {driver_text(err)}") from err
            if not right:
                after = " after an error" if failing else ""
                raise BackendError(f"{_SAVEPOINTS}: ROLLBACK TO SAVEPOINT{after} doesn't undo just what came after it")

    def _drop_stale_cache(self) -> None:
        """Drop what is cached of the tables if others have written, e.g. while this server was frozen."""
        if self._single.version:
            self._execute(self._single.version)
            version = self._cursor.fetchone()
            if version != self._version:
                self._version = version
                self._cache.clear()
                self._cache.rolled_back()

    def _read_epoch(self) -> int:
        self._execute(EPOCH)
        row = self._cursor.fetchone()
        return int(row[0]) if row else 0

    def _is_fatal(self, err: SQLAlchemyError, *, committing: bool = False) -> bool:
        if self._single.is_fatal is None:
            return committing or not isinstance(self._to_error(err), BackendError)  # a refused statement did nothing
        return self._single.is_fatal(getattr(err, "orig", None) or err)

    def _explain(self, err: SQLAlchemyError) -> BalsamError:
        """Return the error of a statement; while no other transaction is open than one that may read."""
        return blame_schema(self._to_error(err), lambda: check(self._conn, self._db_id), self._to_error)

    def _to_error(self, err: BaseException) -> BalsamError:
        error = to_balsam_error(err, self._single.is_retryable, self._single.translate)
        return Unavailable(error.message) if isinstance(error, OutcomeUnknown) else error


_SAVEPOINTS = "the engine's savepoints don't work, and its backend doesn't say savepoints=False in its SingleWriter"
