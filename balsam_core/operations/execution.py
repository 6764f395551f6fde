"""Running calls inside a transaction: looking the operation up, the one clock, exactly-once."""

from __future__ import annotations

import time
from datetime import UTC, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sqlalchemy import bindparam, delete, insert, literal_column, or_, select, update
from sqlalchemy.exc import IntegrityError

from balsam_core.errors import BalsamError, InvalidInput, OutcomeUnknown, by_code
from balsam_core.model.calls import WINDOW
from balsam_core.model.codec import decode, encode
from balsam_core.schema.prepared import Prepared
from balsam_core.schema.tables import applied, counters
from balsam_core.schema.types import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, CursorResult, Executable

    from balsam_core.model.calls import Call, Ticket
    from balsam_core.operations.sole import SoleWriter
    from balsam_core.schema.prepared import Insertion, RawResult, Rows

    BulkInsert: TypeAlias = Callable[[Connection, str, Sequence[str], Sequence[Sequence[Any]]], None]

__all__ = ["AlreadyApplied", "DatabaseClock", "Tx", "operation", "read", "replay", "write"]

R = TypeVar("R")
C = TypeVar("C", bound="Call[Any]")

BULK = 50  # rows from which a bulk insert pays

HOMES = ("adding", "apps", "batches", "changing", "claiming", "launchers", "reading", "upkeep")
"""The modules that hold operations; imported when the first call runs."""

FORGET_EVERY = 32  # writes of one client between clearings of its stored answers
CLOCK_AGE = 10.0  # seconds that one reading of the database's clock is used for

_OPERATIONS: dict[type[Call[Any]], Callable[[Tx, Any], Any]] = {}
_REPLAYS: dict[type[Call[Any]], Callable[[Tx, Any], Any]] = {}


class AlreadyApplied(Exception):
    """The write took effect before; its transaction must be rolled back and the answer replayed."""


class Tx:
    """What an operation works with: a connection inside a transaction, and the time.

    Attributes:
        conn: The connection.
        now: The database's time, UTC.
        ticket: Identity of the write; None for a read.
        names: What is known of small tables without asking; None where others may change them.
        cursor: A driver's cursor on the connection, for an engine inside this process; else None.
    """

    __slots__ = ("_bulk_insert", "_clock", "_now", "conn", "cursor", "names", "ticket")

    def __init__(
        self,
        conn: Connection,
        clock: DatabaseClock,
        ticket: Ticket | None = None,
        sole: SoleWriter | None = None,
        bulk_insert: BulkInsert | None = None,
    ) -> None:
        self.conn = conn
        self.ticket = ticket
        self.names = sole.names if sole else None
        self.cursor = sole.cursor if sole else None
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

    def run(
        self,
        statement: Prepared,
        parameters: Any = None,  # noqa: ANN401
    ) -> CursorResult[*tuple[Any, ...]] | RawResult:
        """Run a prepared statement."""
        if self.cursor is not None:
            return statement.run_raw(self.cursor, self.conn.dialect, parameters)
        return statement.run(self.conn, parameters)

    def insert(self, statement: Insertion, rows: Rows) -> None:
        """Insert rows, as fast as the database can."""
        if self.cursor is not None:
            statement.run_raw(self.cursor, self.conn.dialect, rows)
        elif self._bulk_insert is None or len(rows) < BULK:
            statement.run(self.conn, rows)
        else:
            self._bulk_insert(self.conn, *statement.as_rows(self.conn.dialect, rows))

    def take_ids(self, table: str, count: int = 1) -> int:
        """Return the first of ``count`` new consecutive ids of a table; given back if the transaction fails."""
        known = self.names.last_ids if self.names is not None else {}
        if table in known:
            known[table] += count
            self.run(_SET, {"counter": table, "newest": known[table]})
            return known[table] - count + 1
        if not self.run(_TAKE, {"counter": table, "count": count}).rowcount:
            self.conn.execute(insert(counters), {"name": table, "last": count})
            return 1
        last: int = self.run(_LAST, {"counter": table}).scalar_one()
        known[table] = last
        return last - count + 1


_TAKE = Prepared(
    update(counters).where(counters.c.name == bindparam("counter")).values(last=counters.c.last + bindparam("count"))
)
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


def operation(kind: type[C]) -> Callable[[Callable[[Tx, C], R]], Callable[[Tx, C], R]]:
    """Register the body of a call."""

    def register(body: Callable[[Tx, C], R]) -> Callable[[Tx, C], R]:
        _OPERATIONS[kind] = body
        return body

    return register


def rebuilds(kind: type[C]) -> Callable[[Callable[[Tx, C], R]], Callable[[Tx, C], R]]:
    """Register a function that rebuilds the answer of an applied call from the rows, so that it isn't stored."""

    def register(body: Callable[[Tx, C], R]) -> Callable[[Tx, C], R]:
        _REPLAYS[kind] = body
        return body

    return register


def _body(call: Call[R]) -> Callable[[Tx, Any], R]:
    if type(call) not in _OPERATIONS:
        for home in HOMES:
            import_module(f"balsam_core.operations.{home}")
    try:
        return _OPERATIONS[type(call)]
    except KeyError:
        msg = f"there is no operation {call.operation()!r}"
        raise InvalidInput(msg) from None


def read(conn: Connection, call: Call[R], clock: DatabaseClock) -> R:
    """Run a reading call and return its answer."""
    return _body(call)(Tx(conn, clock), call)


def write(
    conn: Connection,
    call: Call[R],
    ticket: Ticket,
    clock: DatabaseClock,
    sole: SoleWriter | None = None,
    bulk_insert: BulkInsert | None = None,
) -> bytes:
    """Run a writing call inside the open transaction, once for its ticket, and return the encoded answer.

    Among many writers the ticket's row is inserted first: its unique key decides between two sendings of one write even
    while the first one's COMMIT is in flight, where looking before inserting would let both pass.

    Raises:
        AlreadyApplied: The write took effect before. Roll back, then :func:`replay`.
    """
    body = _body(call)
    tx = Tx(conn, clock, ticket, sole, bulk_insert)
    row = {"client_id": ticket.client, "seq": ticket.seq, "at": tx.now}
    if sole is not None:
        # Nobody else can insert it meanwhile, so it may be looked for first and written once, with the answer.
        mark = {"client": ticket.client, "number": ticket.seq, "newer": ticket.seq + WINDOW}
        if tx.run(_IS_THERE, mark).first():
            raise AlreadyApplied
    else:
        try:
            tx.run(_ENTER, row)
        except IntegrityError as err:
            raise AlreadyApplied from err
    if ticket.seq % FORGET_EVERY == 0:
        # The newest rows stay, to tell a late copy of a write whose row is gone.
        conn.execute(_FORGET, {"client": ticket.client, "acked": min(ticket.acked, ticket.seq - WINDOW)})
    reply = encode(body(tx, call))
    kept = None if type(call) in _REPLAYS else reply
    if sole is not None:
        tx.run(_ENTER_ANSWERED, {**row, "reply": kept})
    elif kept is not None:
        tx.run(_ANSWER, {"client": ticket.client, "number": ticket.seq, "answer": kept})
    return reply


_ENTER = Prepared(insert(applied), ["client_id", "seq", "at"])
_ENTER_ANSWERED = Prepared(insert(applied), ["client_id", "seq", "at", "reply"])
_IS_THERE = Prepared(
    select(applied.c.seq)
    .where(
        applied.c.client_id == bindparam("client"),
        or_(applied.c.seq == bindparam("number"), applied.c.seq >= bindparam("newer")),
    )
    .limit(literal_column("1"))
)
_ANSWER = Prepared(
    update(applied)
    .where(applied.c.client_id == bindparam("client"), applied.c.seq == bindparam("number"))
    .values(reply=bindparam("answer", type_=applied.c.reply.type))
)
_FORGET = delete(applied).where(applied.c.client_id == bindparam("client"), applied.c.seq <= bindparam("acked"))
_REPLY = select(applied.c.reply).where(applied.c.client_id == bindparam("client"), applied.c.seq == bindparam("number"))


def refuse(conn: Connection, ticket: Ticket, clock: DatabaseClock, sole: SoleWriter, err: BalsamError) -> None:
    """Remember that a write was refused: a late copy of it must not be carried out, now that its caller was told."""
    tx = Tx(conn, clock, ticket, sole)
    stored = _REFUSED + encode([err.code, err.message])
    tx.run(_ENTER_ANSWERED, {"client_id": ticket.client, "seq": ticket.seq, "at": tx.now, "reply": stored})


_REFUSED = b"\xc1"  # begins no MessagePack value


def replay(conn: Connection, call: Call[R], ticket: Ticket) -> bytes:
    """Return the encoded answer of a write that took effect before, or raise the error that it was refused with."""
    found = conn.execute(_REPLY, {"client": ticket.client, "number": ticket.seq}).first()
    if found is None:
        msg = f"the answer to {call.operation()} (write {ticket.seq} of client {ticket.client}) is no longer stored"
        raise OutcomeUnknown(msg)
    if found[0] is not None:
        stored = bytes(found[0])
        if stored.startswith(_REFUSED):
            code, message = decode(stored[len(_REFUSED) :])
            raise by_code(code)(message)
        return stored
    if type(call) not in _REPLAYS:
        raise InvalidInput(f"write {ticket.seq} of client {ticket.client} was no {call.operation()}")
    return encode(_REPLAYS[type(call)](Tx(conn, DatabaseClock(), ticket), call))
