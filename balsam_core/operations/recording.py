"""The hot path of launchers: recording what happened to the jobs that they hold."""

from __future__ import annotations

from datetime import timedelta
from functools import cache, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import BigInteger, bindparam, case, exists, func, select, update

from balsam_core.errors import SchemaMismatch
from balsam_core.model.calls import Attempt, UpdateJobs
from balsam_core.model.states import END, UNSUCCESSFUL, State, first_illegal_transition, stored_state
from balsam_core.operations.attempts import record_attempts
from balsam_core.operations.conditions import in_chunks
from balsam_core.operations.dependencies import fail_descendants, release_children
from balsam_core.operations.events import NewEvent, record, record_where
from balsam_core.operations.execution import operation
from balsam_core.schema.prepared import Prepared, PreparedList, padded_length
from balsam_core.schema.tables import job_edges, jobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balsam_core.model.calls import Update
    from balsam_core.operations.execution import Tx


@operation(UpdateJobs, default_reply={})
def update_jobs(tx: Tx, call: UpdateJobs) -> dict[int, str]:
    """Record updates; a refused one changes nothing and is named in the answer."""
    found: dict[int, dict[str, Any]] = {}
    for some in in_chunks(sorted({change.job for change in call.updates})):
        found.update((row["id"], row) for row in tx.read_prepared(*_LOCK_JOBS.fill(some)))
    refused: dict[int, str] = {}
    events: list[NewEvent] = []
    ended: list[Attempt] = []
    changed: dict[int, dict[str, Any]] = {}
    for change in call.updates:
        held = found.get(change.job)
        steps = tuple([state for state, _ in change.transitions])
        why = _refusal(held, change, steps, call.launcher)
        if held is None or why:
            refused[change.job] = why
            continue
        path = _follow(held["state"], steps)
        if (attempt := _ended_attempt(tx, held, change, path, call)) is not None:
            ended.append(attempt)
        if change.transitions or change.message:
            event = NewEvent(change.job, held["state_since"], change.attempt, change.transitions, change.message)
            events.append(event)
        if change.transitions:
            held["since"] = held["state_since"] = event.last_transition_at(tx)
        _change_row(tx, held, change, path)
        changed[change.job] = held
        for other, message in change.remarks.items():
            record_where(tx, jobs.c.id == other, [], message)
    if changed:
        may_be_parents = _update_rows(tx, list(changed.values()))
        record(tx, events)
        record_attempts(tx, ended)
        if may_be_parents:
            now_in = [(job, State(row["state"])) for job, row in changed.items()]
            release_children(tx, [job for job, state in now_in if state == State.JOB_FINISHED])
            fail_descendants(tx, [(job, state) for job, state in now_in if state in UNSUCCESSFUL])
    return refused


_READ_COLUMNS = [
    jobs.c[name]
    for name in (
        "id", "state", "state_since", "attempt", "retries", "launcher_id", "claim_class", "resource_class_id",
        "return_code", "launchers_lost",
    )
]  # fmt: skip
_LOCK_JOBS = PreparedList(
    lambda ids: select(*_READ_COLUMNS).where(jobs.c.id.in_(ids)).order_by(jobs.c.id).with_for_update(),
    _READ_COLUMNS,
)
_WRITTEN_COLUMNS = ("state", "since", "retries", "launcher_id", "claim_class", "return_code")
_ROWS_IN_STATEMENT = 64  # a CASE searches its list for each job


def _update_rows(tx: Tx, rows: Sequence[dict[str, Any]]) -> bool:
    """Write changed rows of locked jobs, many in one statement, since each statement is a round trip.

    Returns:
        Whether other jobs may depend on them: False only where the UPDATE itself returns that. It begins after their
        rows were locked, so it sees the children that others have added.
    """
    returning = tx.conn.dialect.update_returning
    may_be_parents = not returning
    for start in range(0, len(rows), _ROWS_IN_STATEMENT):
        some = rows[start : start + _ROWS_IN_STATEMENT]
        names: tuple[str, ...] = _WRITTEN_COLUMNS
        if any(["not_before" in row or "forgiven" in row for row in some]):  # noqa: C419  (a list is faster)
            names += ("launchers_lost", "not_before")
        columns = {name: [row.get(name) for row in some] for name in names}
        different = tuple(name for name, values in columns.items() if len(set(values)) > 1)
        length = padded_length(len(some))
        parameters = {name: values[0] for name, values in columns.items() if name not in different}
        columns["id"] = [row["id"] for row in some]
        for name in ("id", *different):
            padded = columns[name] + columns[name][-1:] * (length - len(some))
            parameters.update(zip(_numbered(name, length), padded, strict=True))
        cursor = tx.run_prepared(_update_statement(names, different, length, returning), parameters)
        may_be_parents = may_be_parents or any(row[0] for row in cursor.fetchall())
    return may_be_parents


@cache
def _numbered(name: str, length: int) -> list[str]:
    """Return the names of the parameters of a column, one for each job."""
    return [f"{name}_{index}" for index in range(length)]


@lru_cache(maxsize=100)
def _update_statement(
    names: tuple[str, ...],
    different: tuple[str, ...],
    length: int,
    returning: bool,  # noqa: FBT001
) -> Prepared:
    """Return the UPDATE that writes columns of jobs.

    Args:
        names: The columns.
        different: Those whose values differ.
        length: The number of jobs.
        returning: Whether it returns for each job whether it has children.
    """
    ids = [bindparam(one, type_=BigInteger()) for one in _numbered("id", length)]
    values: dict[str, Any] = {}
    for name in names:
        kind = jobs.c["state_since" if name == "since" else name].type
        if name in different:
            each = [bindparam(one, type_=kind) for one in _numbered(name, length)]
            values[name] = case(*[(jobs.c.id == one, value) for one, value in zip(ids, each, strict=True)])
        else:
            values[name] = bindparam(name, type_=kind)
    values["state_since"] = func.coalesce(values.pop("since"), jobs.c.state_since)
    statement = update(jobs).where(jobs.c.id.in_(ids)).values(values)
    return Prepared(statement.returning(_IS_PARENT) if returning else statement)


_IS_PARENT = exists(select(job_edges.c.child_id).where(job_edges.c.parent_id == jobs.c.id).correlate(jobs))


class _Path(NamedTuple):
    """Where transitions lead from a state.

    Attributes:
        end: The last state.
        outcome: The last one that isn't RESTART_READY, where there is one: how the attempt ended.
        retries: How many of the transitions are retries after an error.
    """

    end: str
    outcome: str
    retries: int


@lru_cache(maxsize=1000)  # the jobs of an ensemble take few different ones
def _follow(start: str, steps: tuple[State, ...]) -> _Path:
    path = (State(start), *steps)
    outcome = next((state for state in reversed(path) if state != State.RESTART_READY), path[-1])
    retries = sum(pair == (State.RUN_ERROR, State.RESTART_READY) for pair in pairwise(path))
    return _Path(path[-1].value, outcome.value, retries)


_first_illegal_transition = lru_cache(maxsize=1000)(first_illegal_transition)


def _refusal(row: dict[str, Any] | None, change: Update, steps: tuple[State, ...], launcher: int) -> str:
    """Return why an update is refused, empty if it isn't."""
    if row is None:
        return "the job was removed"
    if row["launcher_id"] != launcher or row["attempt"] != change.attempt:
        return f"the job is no longer this launcher's (attempt {row['attempt']}, not {change.attempt})"
    if row["state"] == State.USER_KILLED:
        return "the job was killed by the user" if steps else ""
    try:
        wrong = _first_illegal_transition(stored_state(row["id"], row["state"]), steps)
    except SchemaMismatch as err:
        return str(err)
    return f"a job can't go from {wrong[0]} to {wrong[1]}" if wrong else ""


def _ended_attempt(tx: Tx, row: dict[str, Any], change: Update, path: _Path, call: UpdateJobs) -> Attempt | None:
    """Return the attempt that an update ends, None where nothing was begun or it goes on."""
    if change.run is None or not (change.release or path.end in END or path.end == State.RESTART_READY):
        return None
    started = change.run.started
    return Attempt(
        job_id=change.job,
        attempt=change.attempt,
        launcher_id=call.launcher,
        host=call.host,
        started_at=row["state_since"] if started is None else tx.now - timedelta(seconds=started),
        elapsed=change.run.elapsed,
        cpu_seconds=change.run.cpu_seconds,
        max_memory=change.run.max_memory,
        return_code=change.return_code,
        outcome=path.outcome,
    )


def _change_row(tx: Tx, row: dict[str, Any], change: Update, path: _Path) -> None:
    """Change a row as the update says."""
    row["state"] = path.end
    row["retries"] += path.retries
    if change.return_code is not None:
        row["return_code"] = change.return_code
    if row["state"] == State.USER_KILLED and not change.release:
        pass  # its processes have not ended yet
    elif row["state"] in END:
        row["launcher_id"] = row["claim_class"] = None
    elif change.release or row["state"] == State.RESTART_READY:
        row["launcher_id"] = None
        row["claim_class"] = row["resource_class_id"]
        if change.delay and row["state"] == State.RESTART_READY:
            row["claim_class"] = None
            row["not_before"] = tx.now + timedelta(seconds=change.delay)
    if change.run is not None and row["launcher_id"] is None and row["launchers_lost"]:
        row["forgiven"], row["launchers_lost"] = True, 0
