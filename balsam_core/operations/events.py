"""The history of jobs: one row for each write, naming the transitions that it made."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import bindparam, case, insert, literal, select

from balsam_core.errors import Corrupt
from balsam_core.model.calls import Event
from balsam_core.model.states import State
from balsam_core.schema.prepared import Insertion, Rows
from balsam_core.schema.tables import job_events, jobs
from balsam_core.schema.types import UTCDateTime

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement

    from balsam_core.operations.execution import Tx


def encode_transitions(transitions: Iterable[tuple[State, float]]) -> str:
    """Return transitions as stored: ``STATE seconds-before, ...``."""
    return ", ".join([f"{state} {age:.6f}" if age else f"{state} 0" for state, age in transitions])


def _decode_transitions(text: str) -> list[tuple[State, float]]:
    if not text:
        return []
    try:
        pairs = (part.split(" ") for part in text.split(", "))
        return [(State(state), float(age)) for state, age in pairs]
    except ValueError as err:
        raise Corrupt(f"the history holds {text!r}, which are no transitions") from err


def event_from_row(row: Any) -> Event:  # noqa: ANN401  (a database row)
    """Return a row of ``job_events`` as an Event."""
    return Event(
        job_id=row.job_id,
        at=row.at,
        transitions=_decode_transitions(row.transitions),
        message=row.message or "",
        attempt=row.attempt,
    )


def not_before(tx: Tx) -> ColumnElement[datetime]:
    """Return the time of a change of a job: now, but not before its last one.

    ``tx.now`` is when a transaction began, and clocks of two clients differ by the time of a round trip. So a
    transaction that has waited for another one's lock may have the earlier time.
    """
    now = literal(tx.now, UTCDateTime())
    return case((jobs.c.state_since > now, jobs.c.state_since), else_=now)


class NewEvent(NamedTuple):
    """An event to be written.

    Attributes:
        job: The job, whose row is locked.
        since: Its ``state_since`` before the change: nothing in its history comes later.
        attempt: Its attempt.
        transitions: The states that it went through, each with the seconds before now.
        message: Why.
    """

    job: int
    since: datetime
    attempt: int
    transitions: Sequence[tuple[State, float]]
    message: str = ""

    def at(self, tx: Tx) -> datetime:
        """Return its time; see :func:`not_before`."""
        return max(tx.now, self.since)

    def last_transition_at(self, tx: Tx) -> datetime:
        """Return the time of its last transition, which is not before the last change."""
        return max(tx.now - timedelta(seconds=self.transitions[-1][1]), self.since)


def record(tx: Tx, new: Sequence[NewEvent]) -> None:
    """Write events."""
    if not new:
        return
    now = tx.now
    times = [max(now, one.since) for one in new]
    events = Rows(len(new), columns={"job_id": [one.job for one in new]})
    events.put("at", times)
    events.put("transitions", [_encode_bounded(one, at) for one, at in zip(new, times, strict=True)])
    events.put("message", [one.message or None for one in new])
    events.put("attempt", [one.attempt for one in new])
    tx.insert(INSERT_EVENTS, events)


def _encode_bounded(event: NewEvent, at: datetime) -> str:
    """Return the transitions as stored, none of them before the last change."""
    longest = (at - event.since).total_seconds()
    if max([age for _, age in event.transitions], default=0.0) > longest:
        return encode_transitions([(state, min(age, longest)) for state, age in event.transitions])
    return encode_transitions(event.transitions)


INSERT_EVENTS = Insertion(job_events)


def record_where(tx: Tx, where: ColumnElement[bool], transitions: Sequence[State], message: str = "") -> None:
    """Write one event for each job that meets a condition, without reading the jobs."""
    encoded = encode_transitions((state, 0) for state in transitions)
    events = select(
        jobs.c.id,
        not_before(tx),
        bindparam("event_transitions", encoded, job_events.c.transitions.type),
        bindparam("event_message", message or None, job_events.c.message.type),
        jobs.c.attempt,
    ).where(where)
    tx.execute(insert(job_events).from_select(["job_id", "at", "transitions", "message", "attempt"], events))
