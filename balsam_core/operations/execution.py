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
from balsam_core.model.codec import decode, encode
from balsam_core.schema.prepared import Prepared, RawResult
from balsam_core.schema.tables import counters, processed_requests
from balsam_core.schema.types import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, CursorResult, Executable

    from balsam_core.model.calls import Call, RequestId
    from balsam_core.operations.writer_cache import WriterCache
    from balsam_core.schema.prepared import Insertion, Rows

    BulkInsert: TypeAlias = Callable[[Connection, str, Sequence[str], Sequence[Sequence[Any]]], None]

__all__ = ["AlreadyProcessed", "DatabaseClock", "Tx", "operation", "read", "replay", "write"]

R = TypeVar("R")
C = TypeVar("C", bound="Call[Any]")

BULK = 50  # rows from which a bulk insert pays

OPERATION_MODULES = (
    "adding",
    "apps",
    "changing",
    "claiming",
    "launchers",
    "reading",
    "recording",
    "staged_inserts",
    "upkeep",
)
"""The modules that hold operations; imported when the first call runs."""

FORGET_EVERY = 32  # writes of one client between clearings of its stored answers
CLOCK_AGE = 10.0  # seconds that one reading of the database's clock is used for

_OPERATIONS: dict[type[Call[Any]], Callable[[Tx, Any], Any]] = {}
_DEFAULT_REPLIES: dict[type[Call[Any]], bytes] = {}
_REPLAYS: dict[type[Call[Any]], Callable[[Tx, Any], Any]] = {}


class AlreadyProcessed(Exception):
    """The write took effect before; its transaction must be rolled back and the answer replayed."""


class Tx:
    """What an operation works with: a connection inside a transaction, and the time.

    Attributes:
        conn: The connection.
        now: The database's time, UTC.
        request_id: Identity of the write; None for a read.
        names: What is known of small tables without asking; None where others may change them.
    """

    __slots__ = ("_bulk_insert", "_clock", "_cursor", "_now", "_sole", "conn", "names", "request_id")

    def __init__(
        self,
        conn: Connection,
        clock: DatabaseClock,
        request_id: RequestId | None = None,
        sole: WriterCache | None = None,
        bulk_insert: BulkInsert | None = None,
    ) -> None:
        self.conn = conn
        self.request_id = request_id
        self.names = sole.names if sole else None
        self._sole = sole
        self._cursor = sole.cursor if sole else None
        self._bulk_insert = bulk_insert
        self._clock = clock
        self._now: datetime | None = None

    @property
    def now(self) -> datetime:
        """The database's time, the same for the whole transaction."""
        if self._now is None:
            self._now = self._clock.now(self.conn)
        return self._now

    def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[*tuple[Any, ...]]:  # noqa: ANN401
        """Run a statement."""
        return self.conn.execute(statement, parameters)

    def run(self, statement: Prepared, parameters: Any = None) -> RawResult:  # noqa: ANN401
        """Run a prepared statement; its result must be read before the next one runs."""
        return self._run(*statement.bind(self.conn.dialect, parameters))

    def read(self, statement: Prepared, parameters: Any = None) -> list[dict[str, Any]]:  # noqa: ANN401
        """Run a prepared statement and return its rows by name."""
        return statement.mappings(self.conn.dialect, self.run(statement, parameters).all())

    def insert(self, statement: Insertion, rows: Rows) -> None:
        """Insert rows, as fast as the database can."""
        if self._bulk_insert is None or len(rows) < BULK:
            self._run(*statement.bind(self.conn.dialect, rows, at_once=self._sole is None))
        else:
            self._bulk_insert(self.conn, *statement.as_rows(self.conn.dialect, rows))

    def close(self) -> None:
        """Give up what is left of the last result, which may keep the transaction from ending."""
        if self._sole is None and self._cursor is not None:
            with contextlib.suppress(Exception):  # of a broken connection, whose fault is known by now
                self._cursor.close()

    def _run(self, text: str, values: Any) -> RawResult:  # noqa: ANN401  (as the driver wants it)
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
            if self._sole is not None or not self.conn.in_transaction():
                raise DBAPIError.instance(text, None, err, error) from err
            # Whether the connection broke is for SQLAlchemy to judge, as of its own statements.
            self.conn._handle_dbapi_exception(err, text if isinstance(err, error) else None, None, None, None)  # noqa: SLF001
        return RawResult(self._cursor)

    def lock_ids(self, table: str) -> None:
        """Keep others from taking ids of a table until this transaction ends."""
        if self.names is None:
            self.run(_LOCK, {"counter": table}).first()

    def take_ids(self, table: str, count: int = 1) -> int:
        """Return the first of ``count`` new consecutive ids of a table; given back if the transaction fails."""
        known = self.names.last_ids if self.names is not None else {}
        if table in known:
            known[table] += count
            self.run(_SET, {"counter": table, "newest": known[table]})
            return known[table] - count + 1
        taking = {"counter": table, "count": count}
        last: int | None
        if self.conn.dialect.update_returning:
            last = self.run(_TAKE_AND_READ, taking).scalar()
        else:
            last = self.run(_LAST, {"counter": table}).scalar_one() if self.run(_TAKE, taking).rowcount else None
        if last is None:
            self.conn.execute(insert(counters), {"name": table, "last": count})
            return 1
        known[table] = last
        return last - count + 1


_TAKING = (
    update(counters).where(counters.c.name == bindparam("counter")).values(last=counters.c.last + bindparam("count"))
)
_TAKE, _TAKE_AND_READ = Prepared(_TAKING), Prepared(_TAKING.returning(counters.c.last))
_LOCK = Prepared(select(counters.c.last).where(counters.c.name == bindparam("counter")).with_for_update())
_SET = Prepared(update(counters).where(counters.c.name == bindparam("counter")).values(last=bindparam("newest")))
_LAST = Prepared(select(counters.c.last).where(counters.c.name == bindparam("counter")))


class DatabaseClock:
    """The database's clock, read every 10 s and carried on by this machine's steady clock in between.

    Leases and history of all clients use this one clock, whatever their own clocks say.
    """

    def __init__(self) -> None:
        self._base: datetime | None = None
        self._read_at = 0.0

    def now(self, conn: Connection) -> datetime:
        """Return the time, reading the database's clock through ``conn`` where it is due."""
        steady = time.clock_gettime(_STEADY)
        if self._base is None or not 0 <= steady - self._read_at < CLOCK_AGE:
            base = conn.execute(_NOW).scalar_one()
            steady = time.clock_gettime(_STEADY)
            self._base, self._read_at = base.astimezone(UTC), steady
        return self._base + timedelta(seconds=steady - self._read_at)


_NOW = select(utc_now())
# The clock that also counts while the machine sleeps, where there is one.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def operation(kind: type[C], *, default_reply: object = None) -> Callable[[Callable[[Tx, C], R]], Callable[[Tx, C], R]]:
    """Register the body of a call.

    Args:
        kind: The call's class.
        default_reply: What it nearly always answers: inserted with the request id, which saves an UPDATE.
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
        _REPLAYS[kind] = body
        return body

    return register


def _body(call: Call[R]) -> Callable[[Tx, Any], R]:
    if type(call) not in _OPERATIONS:
        for home in OPERATION_MODULES:
            import_module(f"balsam_core.operations.{home}")
    try:
        return _OPERATIONS[type(call)]
    except KeyError:
        msg = f"there is no operation {call.operation()!r}"
        raise InvalidInput(msg) from None


def read(conn: Connection, call: Call[R], clock: DatabaseClock) -> R:
    """Run a reading call and return its answer."""
    with contextlib.closing(Tx(conn, clock)) as tx:
        return _body(call)(tx, call)


def write(
    conn: Connection,
    call: Call[R],
    request_id: RequestId,
    clock: DatabaseClock,
    sole: WriterCache | None = None,
    bulk_insert: BulkInsert | None = None,
) -> bytes:
    """Run a writing call inside the open transaction, once for its request id, and return the encoded answer.

    Among many writers the request id is inserted first. Its unique key decides between two sendings of one write, even
    while the COMMIT of the first is in flight; a SELECT before the INSERT would let both pass.

    Raises:
        AlreadyProcessed: The write took effect before. Roll back, then :func:`replay`.
    """
    with contextlib.closing(Tx(conn, clock, request_id, sole, bulk_insert)) as tx:
        return _write(tx, call, request_id, alone=sole is not None)


def _write(tx: Tx, call: Call[R], request_id: RequestId, *, alone: bool) -> bytes:
    body = _body(call)
    default_reply = _DEFAULT_REPLIES.get(type(call))
    row = {"client_id": request_id.client, "seq": request_id.seq, "processed_at": tx.now}
    if alone:
        # Nobody else can insert it meanwhile, so it may be looked for first and written once, with the answer.
        mark = {"client": request_id.client, "number": request_id.seq, "newer": request_id.seq + WINDOW}
        if tx.run(_IS_THERE, mark).first():
            raise AlreadyProcessed
    else:
        try:
            tx.run(_ENTER, {**row, "reply": default_reply})
        except IntegrityError as err:
            raise AlreadyProcessed from err
    if request_id.seq % FORGET_EVERY == 0:
        # The newest rows stay, to tell a late copy of a write whose row is gone.
        tx.execute(_FORGET, {"client": request_id.client, "acked": min(request_id.acked, request_id.seq - WINDOW)})
    reply = encode(body(tx, call))
    kept = None if type(call) in _REPLAYS else reply
    if alone:
        tx.run(_ENTER, {**row, "reply": kept})
    elif kept != default_reply:
        tx.run(_ANSWER, {"client": request_id.client, "number": request_id.seq, "answer": kept})
    return reply


_ENTER = Prepared(insert(processed_requests), ["client_id", "seq", "processed_at", "reply"])
_IS_THERE = Prepared(
    select(processed_requests.c.seq)
    .where(
        processed_requests.c.client_id == bindparam("client"),
        or_(processed_requests.c.seq == bindparam("number"), processed_requests.c.seq >= bindparam("newer")),
    )
    .limit(literal_column("1"))
)
_ANSWER = Prepared(
    update(processed_requests)
    .where(processed_requests.c.client_id == bindparam("client"), processed_requests.c.seq == bindparam("number"))
    .values(reply=bindparam("answer", type_=processed_requests.c.reply.type))
)
_FORGET = delete(processed_requests).where(
    processed_requests.c.client_id == bindparam("client"), processed_requests.c.seq <= bindparam("acked")
)
_REPLY = select(processed_requests.c.reply).where(
    processed_requests.c.client_id == bindparam("client"), processed_requests.c.seq == bindparam("number")
)


def refuse(conn: Connection, request_id: RequestId, clock: DatabaseClock, sole: WriterCache, err: BalsamError) -> None:
    """Remember that a write was refused: a late copy of it must not be carried out, now that its caller was told."""
    tx = Tx(conn, clock, request_id, sole)
    stored = _REFUSED + encode([err.code, err.message])
    tx.run(_ENTER, {"client_id": request_id.client, "seq": request_id.seq, "processed_at": tx.now, "reply": stored})


_REFUSED = b"\xc1"  # begins no MessagePack value


def replay(conn: Connection, call: Call[R], request_id: RequestId) -> bytes:
    """Return the encoded answer of a write that took effect before, or raise the error that it was refused with."""
    found = conn.execute(_REPLY, {"client": request_id.client, "number": request_id.seq}).first()
    if found is None:
        write = f"write {request_id.seq} of client {request_id.client}"
        msg = f"the answer to {call.operation()} ({write}) is no longer stored"
        raise OutcomeUnknown(msg)
    if found[0] is not None:
        stored = bytes(found[0])
        if stored.startswith(_REFUSED):
            code, message = decode(stored[len(_REFUSED) :])
            raise error_class(code)(message)
        return stored
    if type(call) not in _REPLAYS:
        raise InvalidInput(f"write {request_id.seq} of client {request_id.client} was no {call.operation()}")
    with contextlib.closing(Tx(conn, DatabaseClock(), request_id)) as tx:
        return encode(_REPLAYS[type(call)](tx, call))
