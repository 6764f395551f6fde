"""The history of jobs: one row for each write, naming the transitions that it made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, insert, literal, select

from balsam_core.errors import Corrupt
from balsam_core.model.calls import Event
from balsam_core.model.states import State
from balsam_core.schema.prepared import Insertion, Rows
from balsam_core.schema.tables import job_events, jobs
from balsam_core.schema.types import UTCDateTime

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import ColumnElement

    from balsam_core.operations.execution import Tx


def encode_transitions(transitions: Iterable[tuple[State, float]]) -> str:
    """Return transitions as stored: ``STATE seconds-before, ...``."""
    return ", ".join(f"{state} {age:.6f}" if age else f"{state} 0" for state, age in transitions)


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


def record(tx: Tx, rows: Sequence[tuple[int, Iterable[tuple[State, float]], str, int]]) -> None:
    """Write events: (job, transitions, message, attempt) each."""
    if not rows:
        return
    events = Rows(len(rows), same={"at": tx.now}, columns={"job_id": [row[0] for row in rows]})
    events.put("transitions", [encode_transitions(row[1]) for row in rows])
    events.put("message", [row[2] or None for row in rows])
    events.put("attempt", [row[3] for row in rows])
    tx.insert(INSERT_EVENTS, events)


INSERT_EVENTS = Insertion(job_events)


def record_where(tx: Tx, where: ColumnElement[bool], transitions: Sequence[State], message: str = "") -> None:
    """Write one event for each job that meets a condition, without reading the jobs."""
    encoded = encode_transitions((state, 0) for state in transitions)
    events = select(
        jobs.c.id,
        literal(tx.now, UTCDateTime()),
        bindparam("event_transitions", encoded, job_events.c.transitions.type),
        bindparam("event_message", message or None, job_events.c.message.type),
        jobs.c.attempt,
    ).where(where)
    tx.execute(insert(job_events).from_select(["job_id", "at", "transitions", "message", "attempt"], events))
