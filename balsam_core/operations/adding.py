"""The operation that adds jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import astuple
from sqlalchemy import and_, insert, literal, or_, select

from balsam_core.errors import InvalidInput, NotFound
from balsam_core.model.calls import Added, AddJobs
from balsam_core.model.job import FIELDS, check_columns
from balsam_core.model.states import UNSUCCESSFUL, State, stored_state
from balsam_core.operations.conditions import in_chunks, visible
from balsam_core.operations.dependencies import fail_descendants
from balsam_core.operations.events import INSERT_EVENTS
from balsam_core.operations.execution import operation
from balsam_core.operations.existing_jobs import compare_existing, lock_unstarted, update_existing
from balsam_core.operations.job_keys import NO_MATCHES, find_existing_keys
from balsam_core.operations.small_tables import app_needs, check_parameters, class_ids, shapes_of, workflow_ids
from balsam_core.operations.staged_inserts import extend_staged_insert, lock_open_staged_insert
from balsam_core.operations.stored_fields import COPIED, DEFAULT_FOR_NULL, DOCUMENTS
from balsam_core.schema.prepared import Insertion, Rows
from balsam_core.schema.tables import job_edges, jobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balsam_core.model.job import Job
    from balsam_core.operations.execution import Tx
    from balsam_core.operations.job_keys import KeyMatches
    from balsam_core.operations.small_tables import AppNeeds


@operation(AddJobs)
def add_jobs(tx: Tx, call: AddJobs) -> Added:
    """Add jobs to the database or to an open staged insert.

    Raises:
        InvalidInput: A value can't be right.
        NotFound: An app, a parent or the staged insert doesn't exist.
        Conflict: The staged insert is published, or a key exists with other content.
    """
    if not call.jobs:
        return Added(first_id=0)
    staged_insert = lock_open_staged_insert(tx, call.staged_insert) if call.staged_insert else None
    given = _values_by_field(call.jobs)
    needs = _check(tx, call, given)
    matches = find_existing_keys(tx, call) if any(given["key"]) else NO_MATCHES
    stored, repeated = matches.stored, matches.repeated
    new = [(index, job) for index, job in enumerate(call.jobs) if index not in stored and index not in repeated]
    first_id = tx.take_ids("jobs", len(new)) if new else 0
    ids = stored | {index: first_id + i for i, (index, _) in enumerate(new)}
    ids.update((index, ids[first]) for index, first in repeated.items())
    parents = _Parents(tx, call, ids, matches)
    existing, changes = compare_existing(tx, call, matches, parents.by_index) if stored or repeated else ({}, {})
    if new:
        if len(new) < len(call.jobs):
            given = _values_by_field([job for _, job in new])
        rows = _job_rows(tx, call.staged_insert, given, [ids[index] for index, _ in new], needs, parents)
        tx.insert(_INSERT_JOBS, rows)
        if events := _first_events(tx, rows):
            tx.insert(INSERT_EVENTS, events)
    parents.insert_edges(tx)
    if changes and staged_insert is None:
        given = _values_by_field([call.jobs[index] for index in changes])
        rows = _content_rows(tx, given, [ids[index] for index in changes], needs)
        update_existing(tx, rows, {ids[index]: changed for index, changed in changes.items()})
    if staged_insert is None:
        fail_descendants(tx, parents.unsuccessful)
    elif changes:
        lock_unstarted(tx, {ids[index]: changed for index, changed in changes.items()})  # known before it is published
    if staged_insert is not None and new:
        extend_staged_insert(tx, staged_insert, first_id, first_id + len(new) - 1)
    existing_ids = {index: ids[index] for index in (*stored, *repeated)}
    return Added(first_id=first_id, existing_ids=existing_ids, existing=existing)


def _check(tx: Tx, call: AddJobs, given: dict[str, Sequence[Any]]) -> dict[str, AppNeeds]:
    """Raise InvalidInput for what can't be right; return what is needed of the apps, by name."""
    check_columns(given, call.called)
    for index, job in enumerate(call.jobs if any(given["id"]) else ()):
        if job.id is not None:
            raise InvalidInput(f"{call.called(index)} has the id {job.id} already: ids are given by the database")
    needs = app_needs(tx, set(given["app"]) - {""})
    for index, job in enumerate(call.jobs if needs else ()):
        if job.app:
            try:
                check_parameters(job, needs[job.app])
            except InvalidInput as err:
                raise InvalidInput(f"{call.called(index)}: {err}") from None
    return needs


_INSERT_JOBS = Insertion(jobs)


def _values_by_field(given: Sequence[Job]) -> dict[str, Sequence[Any]]:
    return dict(zip(FIELDS, zip(*[astuple(job) for job in given], strict=True), strict=True))


class _Parents:
    """The parents of the jobs of one call: which there are, which have not finished, which have ended badly.

    Args:
        tx: The transaction.
        call: The call.
        ids: The jobs' ids by index.
        matches: The jobs whose keys exist; their parents are only compared, and not looked at if they are kept.

    Attributes:
        by_index: The ids of the parents by the job's index in the call.
    """

    def __init__(self, tx: Tx, call: AddJobs, ids: dict[int, int], matches: KeyMatches) -> None:
        outside: set[int] = set()
        self.by_index: dict[int, set[int]] = {}
        self._of: dict[int, set[int]] = {}
        for index, job in enumerate(call.jobs):
            exists = index in matches.stored or index in matches.repeated
            if not job.parents or (exists and call.if_exists == "keep"):
                continue
            found = set()
            for parent in job.parents:
                if not isinstance(parent, int) or parent == 0 or parent < -index:
                    raise InvalidInput(
                        f"{call.called(index)}: {parent!r} is no parent: give ids, or earlier jobs of the same call"
                    )
                parent_id = ids[-parent - 1] if parent < 0 else parent
                found.add(parent_id)
                if parent > 0 or -parent - 1 in matches.stored:
                    outside.add(parent_id)
            self.by_index[index] = found
            if not exists:
                self._of[ids[index]] = found
        self._states = self._lock_parents(tx, outside, call.staged_insert)

    @staticmethod
    def _lock_parents(tx: Tx, outside: set[int], staged_insert: int) -> dict[int, State]:
        """Return the states of parents that were stored before, locked, so that none finishes unseen."""
        states: dict[int, State] = {}
        for some in in_chunks(sorted(outside)):
            query = (
                select(jobs.c.id, jobs.c.state)
                .where(
                    jobs.c.id.in_(some),
                    or_(visible(), and_(jobs.c.staged_insert_id == staged_insert, literal(staged_insert) != 0)),
                )
                .order_by(jobs.c.id)
                .with_for_update()
            )
            states.update((row.id, stored_state(row.id, row.state)) for row in tx.execute(query))
        missing = outside - states.keys()
        if missing:
            raise NotFound(f"there is no job {min(missing)} that could be a parent")
        return states

    def count_unfinished(self, job: int) -> int:
        """Count the parents of a job that have not finished."""
        return sum(self._states.get(parent) != State.JOB_FINISHED for parent in self._of.get(job, ()))

    def insert_edges(self, tx: Tx) -> None:
        """Insert the dependencies."""
        edges = [{"parent_id": parent, "child_id": child} for child, found in self._of.items() for parent in found]
        if edges:
            tx.execute(insert(job_edges), edges)

    @property
    def unsuccessful(self) -> list[tuple[int, State]]:
        """The parents that have ended badly before, with their states."""
        return [(parent, state) for parent, state in self._states.items() if state in UNSUCCESSFUL]


def _job_rows(
    tx: Tx,
    staged_insert: int,
    given: dict[str, Sequence[Any]],
    ids: list[int],
    needs: dict[str, AppNeeds],
    parents: _Parents,
) -> Rows:
    """Return the rows of new jobs. Those of a staged insert are not claimable yet, and with parents CREATED."""
    rows = _content_rows(tx, given, ids, needs)
    rows.same.update(attempt=0, retries=0, staged_insert_id=staged_insert, created_at=tx.now, state_since=tx.now)
    same_class = rows.same.get("resource_class_id")
    class_by_job: Sequence[int | None] = rows.columns.get("resource_class_id", [same_class] * len(ids))
    if any(given["parents"]):
        left = [parents.count_unfinished(job) for job in ids]
        if staged_insert:
            states = [State.CREATED.value if of else State.READY.value for of in given["parents"]]
        else:
            waits = zip(left, given["wait_for_parents"], strict=True)
            states = [State.AWAITING_PARENTS.value if n and wait else State.READY.value for n, wait in waits]
        rows.put("parents_left", left)
        rows.columns["state"] = states
        ready = zip(class_by_job, states, strict=True)
        claim_class = [one if state == State.READY.value else None for one, state in ready]
    else:
        rows.same.update(parents_left=0, state=State.READY.value)
        claim_class = list(class_by_job)
    if not staged_insert:
        rows.put("claim_class", claim_class)
    return rows


def _content_rows(tx: Tx, given: dict[str, Sequence[Any]], ids: list[int], needs: dict[str, AppNeeds]) -> Rows:
    """Return ids and what the users gave as rows; columns that would be NULL in all of them are left out."""
    workflows = workflow_ids(tx, set(given["workflow"]))
    shapes = shapes_of(given)
    classes = class_ids(tx, set(shapes))
    names = zip(given["name"], given["app"], strict=True)
    given["name"] = [name or app or "job" for name, app in names]
    rows = Rows(len(ids), columns={"id": ids})
    for name in COPIED:
        rows.put(name, given[name])
    for name in (*DEFAULT_FOR_NULL, *DOCUMENTS):
        if any(given[name]):
            rows.columns[name] = [value or None for value in given[name]]
    rows.put("workflow_id", [workflows[name] for name in given["workflow"]])
    rows.put("app_id", [needs[name].id if name else None for name in given["app"]])
    rows.put("resource_class_id", [classes[one] for one in shapes])
    return rows


def _first_events(tx: Tx, rows: Rows) -> Rows:
    """Return the first events of new jobs; a CREATED one gets it when it is promoted."""
    same = {"at": tx.now, "attempt": 0}
    if "state" in rows.same:
        same["transitions"] = f"CREATED 0, {rows.same['state']} 0"
        return Rows(len(rows), same, {"job_id": rows.columns["id"]})
    states = zip(rows.columns["id"], rows.columns["state"], strict=True)
    known = {job: f"CREATED 0, {state} 0" for job, state in states if state != State.CREATED}
    return Rows(len(known), same, {"job_id": list(known), "transitions": list(known.values())})
