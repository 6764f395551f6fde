"""Running calls inside a transaction: looking the operation up, the one clock, exactly-once."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sqlalchemy import bindparam, delete, insert, literal_column, or_, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from balsam_core.errors import BalsamError, InvalidInput, OutcomeUnknown, error_class
from balsam_core.model.calls import WINDOW
from balsam_core.model.codec import decode_stored, encode
from balsam_core.schema.prepared import Prepared
from balsam_core.schema.tables import counters, processed_requests
from balsam_core.schema.types import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, CursorResult, Executable
    from sqlalchemy.engine.interfaces import DBAPICursor

    from balsam_core.model.calls import Call, RequestId
    from balsam_core.operations.writer_cache import WriterCache
    from balsam_core.schema.prepared import Insertion, Rows

    BulkInsert: TypeAlias = Callable[[Connection, str, Sequence[str], Sequence[Sequence[Any]]], None]

R = TypeVar("R")
C = TypeVar("C", bound="Call[Any]")

BULK_ROWS = 50  # from which a bulk insert pays

OPERATION_MODULES = (
    "adding",
    "apps",
    "attempts",
    "blockers",
    "changing",
    "claiming",
    "delays",
    "dependencies",
    "launchers",
    "reading",
    "recording",
    "removing",
    "staged_inserts",
    "unfit",
    "upkeep",
)
"""The modules that hold operations; imported when the first call runs."""

FORGET_EVERY = 32  # writes of one client between clearings of its stored answers
MAX_CLOCK_AGE = 10.0  # seconds that one reading of the database's clock is used for

_OPERATIONS: dict[type[Call[Any]], Callable[[Tx, Any], Any]] = {}
_DEFAULT_REPLIES: dict[type[Call[Any]], bytes] = {}
_REBUILDERS: dict[type[Call[Any]], Callable[[Tx, Any], Any]] = {}


class AlreadyProcessed(Exception):
    """The write took effect before; its transaction must be rolled back and the answer replayed."""


class Tx:
    """What an operation works with: a connection inside a transaction, and the time.

    Statements run in two ways: :meth:`execute` leaves all to SQLAlchemy; :meth:`run_prepared` gives a prepared
    statement to the driver's cursor, which saves 60 to 90 us.

    Attributes:
        conn: The connection.
        request_id: Identity of the write; None for a read.
        cache: What the only writer of a database keeps; None where others may write.
    """

    __slots__ = ("_bulk_insert", "_clock", "_cursor", "_now", "cache", "conn", "request_id")

    def __init__(
        self,
        conn: Connection,
        clock: DatabaseClock,
        request_id: RequestId | None = None,
        cache: WriterCache | None = None,
        bulk_insert: BulkInsert | None = None,
    ) -> None:
        self.conn = conn
        self.request_id = request_id
        self.cache = cache
        self._cursor = cache.cursor if cache else None
        self._bulk_insert = bulk_insert
        self._clock = clock
        self._now: datetime | None = None

    @property
    def now(self) -> datetime:
        """The database's time in UTC, the same for the whole transaction."""
        if self._now is None:
            self._now = self._clock.now(self.conn)
        return self._now

    def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[*tuple[Any, ...]]:  # noqa: ANN401
        """Run a statement through SQLAlchemy."""
        return self.conn.execute(statement, parameters)

    def run_prepared(self, statement: Prepared, parameters: Any = None) -> DBAPICursor:  # noqa: ANN401
        """Run a prepared statement; returns the driver's cursor, to be read before the next one runs."""
        return self._run_on_cursor(*statement.bind(self.conn.dialect, parameters))

    def read_prepared(self, statement: Prepared, parameters: Any = None) -> list[dict[str, Any]]:  # noqa: ANN401
        """Run a prepared statement and return its rows by name, with values as the columns' types have them."""
        columns = statement.columns(self.conn.dialect, self.run_prepared(statement, parameters).fetchall())
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def insert(self, statement: Insertion, rows: Rows) -> None:
        """Insert rows, as fast as the database can."""
        if self._bulk_insert is None or len(rows) < BULK_ROWS:
            self._run_on_cursor(*statement.bind(self.conn.dialect, rows, at_once=self.cache is None))
        else:
            self._bulk_insert(self.conn, *statement.as_rows(self.conn.dialect, rows))

    def close(self) -> None:
        """Give up what is left of the last result, which may keep the transaction from ending."""
        if self.cache is None and self._cursor is not None:
            with contextlib.suppress(Exception):  # of a broken connection, whose fault is known by now
                self._cursor.close()

    def _run_on_cursor(self, text: str, values: Any) -> DBAPICursor:  # noqa: ANN401  (as the driver wants it)
        if self._cursor is None:
            self._cursor = self.conn.connection.cursor()
        try:
            if type(values) is not list:
                self._cursor.execute(text, values)
            elif len(values) == 1:
                self._cursor.execute(text, values[0])
            else:
                self._cursor.executemany(text, values)
        except BaseException as err:
            error = self.conn.dialect.loaded_dbapi.Error
            # An engine in this process, whose connection can't be lost, makes its transactions without SQLAlchemy.
            if self.cache is not None or not self.conn.in_transaction():
                raise DBAPIError.instance(text, None, err, error) from err
            # SQLAlchemy decides whether the connection broke, as for its own statements. A private method, since there
            # is no public way to it; a unit test fails when it changes.
            self.conn._handle_dbapi_exception(err, text if isinstance(err, error) else None, None, None, None)  # noqa: SLF001
        return self._cursor

    def lock_ids(self, table: str) -> None:
        """Keep others from taking ids of a table until this transaction ends."""
        if self.cache is None:
            self.run_prepared(_LOCK_IDS, {"counter": table}).fetchone()

    def take_ids(self, table: str, count: int = 1) -> int:
        """Return the first of ``count`` new consecutive ids of a table; given back if the transaction fails."""
        last_ids = self.cache.last_ids if self.cache is not None else {}
        if table in last_ids:
            last_ids[table] += count
            self.run_prepared(_SET_LAST_ID, {"counter": table, "newest": last_ids[table]})
            return last_ids[table] - count + 1
        taking = {"counter": table, "count": count}
        if self.conn.dialect.update_returning:
            row = self.run_prepared(_TAKE_IDS_RETURNING, taking).fetchone()
        else:
            taken = self.run_prepared(_TAKE_IDS, taking).rowcount
            row = self.run_prepared(_LAST_ID, {"counter": table}).fetchone() if taken else None
        if row is None:
            self.conn.execute(insert(counters), {"name": table, "last": count})
            return 1
        last: int = row[0]
        last_ids[table] = last
        return last - count + 1


_OF_COUNTER = counters.c.name == bindparam("counter")
_TAKING = update(counters).where(_OF_COUNTER).values(last=counters.c.last + bindparam("count"))
_TAKE_IDS, _TAKE_IDS_RETURNING = Prepared(_TAKING), Prepared(_TAKING.returning(counters.c.last))
_LAST_ID = Prepared(select(counters.c.last).where(_OF_COUNTER))
_LOCK_IDS = Prepared(select(counters.c.last).where(_OF_COUNTER).with_for_update())
_SET_LAST_ID = Prepared(update(counters).where(_OF_COUNTER).values(last=bindparam("newest")))


class DatabaseClock:
    """The database's clock, read every 10 s and carried on by this machine's monotonic clock in between.

    Leases and history of all clients use this one clock, whatever their own clocks say.
    """

    def __init__(self) -> None:
        self._base: datetime | None = None
        self._read_at = 0.0

    def now(self, conn: Connection) -> datetime:
        """Return the time, reading the database's clock through ``conn`` where it is due."""
        monotonic = time.clock_gettime(_MONOTONIC)
        if self._base is None or not 0 <= monotonic - self._read_at < MAX_CLOCK_AGE:
            base = conn.execute(_NOW).scalar_one()
            monotonic = time.clock_gettime(_MONOTONIC)
            self._base, self._read_at = base.astimezone(UTC), monotonic
        return self._base + timedelta(seconds=monotonic - self._read_at)


_NOW = select(utc_now())
# The clock that also counts while the machine sleeps, where there is one.
_MONOTONIC = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def operation(kind: type[C], *, default_reply: object = None) -> Callable[[Callable[[Tx, C], R]], Callable[[Tx, C], R]]:
    """Register the body of a call.

    ``default_reply`` is what it nearly always answers: inserted with the request id, which saves an UPDATE.
    """

    def register(body: Callable[[Tx, C], R]) -> Callable[[Tx, C], R]:
        _OPERATIONS[kind] = body
        if default_reply is not None:
            _DEFAULT_REPLIES[kind] = encode(default_reply)
        return body

    return register


def rebuilds(kind: type[C]) -> Callable[[Callable[[Tx, C], R]], Callable[[Tx, C], R]]:
    """Register a function that rebuilds the answer of a processed call from the rows, so that it isn't stored."""

    def register(body: Callable[[Tx, C], R]) -> Callable[[Tx, C], R]:
        _REBUILDERS[kind] = body
        return body

    return register


def operation_of(call: Call[R]) -> Callable[[Tx, Any], R]:
    """Return the registered body of a call.

    Raises:
        InvalidInput: There is none.
    """
    if type(call) not in _OPERATIONS:
        for module in OPERATION_MODULES:
            import_module(f"balsam_core.operations.{module}")
    try:
        return _OPERATIONS[type(call)]
    except KeyError:
        raise InvalidInput(f"there is no operation {call.operation()!r}") from None


def read(conn: Connection, call: Call[R], clock: DatabaseClock) -> R:
    """Run a reading call and return its answer."""
    with contextlib.closing(Tx(conn, clock)) as tx:
        return operation_of(call)(tx, call)


def write(
    conn: Connection,
    call: Call[R],
    request_id: RequestId,
    clock: DatabaseClock,
    cache: WriterCache | None = None,
    bulk_insert: BulkInsert | None = None,
) -> bytes:
    """Run a writing call inside the open transaction, once for its request id, and return the encoded answer.

    Among many writers the request id is inserted first. Its unique key decides between two sendings of one write, even
    while the COMMIT of the first is in flight; a SELECT before the INSERT would let both pass.

    Raises:
        AlreadyProcessed: The write took effect before. Roll back, then :func:`touch` and :func:`replay`.
    """
    body = operation_of(call)
    default_reply = _DEFAULT_REPLIES.get(type(call))
    with contextlib.closing(Tx(conn, clock, request_id, cache, bulk_insert)) as tx:
        row = {"client_id": request_id.client, "seq": request_id.seq, "processed_at": tx.now}
        if cache is not None:
            # Nobody else can insert it meanwhile, so it may be looked for first and written once, with the answer.
            wanted = {"client": request_id.client, "wanted_seq": request_id.seq, "newer": request_id.seq + WINDOW}
            if tx.run_prepared(_FIND_REQUEST, wanted).fetchone():
                raise AlreadyProcessed
        else:
            try:
                tx.run_prepared(_INSERT_REQUEST, {**row, "reply": default_reply})
            except IntegrityError as err:
                raise AlreadyProcessed from err
        if request_id.seq % FORGET_EVERY == 0:
            # The newest rows stay, to recognise a late copy of a write whose row is gone.
            oldest = min(request_id.acked, request_id.seq - WINDOW)
            tx.execute(_FORGET_REQUESTS, {"client": request_id.client, "acked": oldest})
        reply = encode(body(tx, call))
        stored = None if type(call) in _REBUILDERS else reply
        if cache is not None:
            tx.run_prepared(_INSERT_REQUEST, {**row, "reply": stored})
        elif stored != default_reply:
            answer = {"client": request_id.client, "wanted_seq": request_id.seq, "answer": stored}
            tx.run_prepared(_STORE_REPLY, answer)
    return reply


_OF_CLIENT = processed_requests.c.client_id == bindparam("client")
_OF_REQUEST = (_OF_CLIENT, processed_requests.c.seq == bindparam("wanted_seq"))
_INSERT_REQUEST = Prepared(insert(processed_requests), ["client_id", "seq", "processed_at", "reply"])
_FIND_REQUEST = Prepared(
    select(processed_requests.c.seq)
    .where(_OF_CLIENT, or_(_OF_REQUEST[1], processed_requests.c.seq >= bindparam("newer")))
    .limit(literal_column("1"))
)
_STORE_REPLY = Prepared(
    update(processed_requests)
    .where(*_OF_REQUEST)
    .values(reply=bindparam("answer", type_=processed_requests.c.reply.type))
)
_FORGET_REQUESTS = delete(processed_requests).where(_OF_CLIENT, processed_requests.c.seq <= bindparam("acked"))
_GET_REPLY = select(processed_requests.c.reply).where(*_OF_REQUEST)
_TOUCH_REQUEST = update(processed_requests).where(*_OF_REQUEST).values(processed_at=bindparam("at"))


def refuse(conn: Connection, request_id: RequestId, clock: DatabaseClock, cache: WriterCache, err: BalsamError) -> None:
    """Remember that a write was refused: a late copy of it must not be carried out, now that its caller was told."""
    tx = Tx(conn, clock, request_id, cache)
    reply = _REFUSED + encode([err.code, err.message])
    row = {"client_id": request_id.client, "seq": request_id.seq, "processed_at": tx.now, "reply": reply}
    tx.run_prepared(_INSERT_REQUEST, row)


_REFUSED = b"\xc1"  # begins no MessagePack value


def touch(conn: Connection, request_id: RequestId, clock: DatabaseClock) -> None:
    """Write to the row of a write that took effect before, so that the COMMIT of its replay waits for the replicas.

    The first COMMIT may have ended without them. The new time makes it a change for MySQL, too.
    """
    at = Tx(conn, clock, request_id).now
    conn.execute(_TOUCH_REQUEST, {"client": request_id.client, "wanted_seq": request_id.seq, "at": at})


def replay(conn: Connection, call: Call[R], request_id: RequestId) -> bytes:
    """Return the encoded answer of a write that took effect before, or raise the error that it was refused with.

    Raises:
        OutcomeUnknown: The answer is no longer stored.
        Corrupt: What is stored can't be read.
    """
    name = f"write {request_id.seq} of client {request_id.client}"
    found = conn.execute(_GET_REPLY, {"client": request_id.client, "wanted_seq": request_id.seq}).first()
    if found is None:
        raise OutcomeUnknown(f"the answer to {call.operation()} ({name}) is no longer stored")
    if found[0] is not None:
        reply = bytes(found[0])
        if reply.startswith(_REFUSED):
            code, message = decode_stored(tuple[str, str], reply[len(_REFUSED) :], "a stored error")
            raise error_class(code)(message)
        return reply
    if type(call) not in _REBUILDERS:
        raise InvalidInput(f"{name} was no {call.operation()}")
    with contextlib.closing(Tx(conn, DatabaseClock(), request_id)) as tx:
        return encode(_REBUILDERS[type(call)](tx, call))
