"""Operations that add jobs and dependencies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msgspec.structs import astuple
from sqlalchemy import BigInteger, and_, delete, insert, literal, not_, or_, select, update

from balsam_core.errors import Conflict, InvalidInput, NotFound
from balsam_core.model.calls import Added, AddEdge, AddJobs
from balsam_core.model.command import split
from balsam_core.model.job import FIELDS, check_columns
from balsam_core.model.states import END, PARENT_LOST, State
from balsam_core.operations.dependencies import fail_descendants
from balsam_core.operations.dimensions import app_needs, check_parameters, class_ids, shapes_of, workflow_ids
from balsam_core.operations.events import INSERT_EVENTS, record
from balsam_core.operations.execution import operation
from balsam_core.operations.rows import DOCUMENTS, OPTIONAL_TEXTS, in_chunks, visible
from balsam_core.operations.staged_inserts import extend_staged_insert, lock_open_staged_insert
from balsam_core.schema.prepared import Insertion, Rows
from balsam_core.schema.tables import counters, job_edges, job_events, jobs, staged_inserts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balsam_core.model.job import Job
    from balsam_core.operations.dimensions import AppNeeds
    from balsam_core.operations.execution import Tx

COPIED = (
    "priority",
    "key",
    "wall_time_minutes",
    "max_retries",
    "wait_for_parents",
    "post_error_handler",
    "post_timeout_handler",
    "auto_timeout_retry",
)
"""Fields that are stored as they are."""

EMPTY_AS_NULL = (*OPTIONAL_TEXTS, *DOCUMENTS)


@operation(AddJobs)
def add_jobs(tx: Tx, call: AddJobs) -> Added:
    """Add jobs to the database or to an open staged insert.

    Raises:
        InvalidInput: A value can't be right.
        NotFound: An app, a parent or the staged insert doesn't exist.
        Conflict: The staged insert is published.
    """
    if not call.jobs:
        return Added(first=0)
    staged_insert = lock_open_staged_insert(tx, call.staged_insert) if call.staged_insert else None
    given = _columns(call.jobs)
    _check(call.jobs, given)
    needs = app_needs(tx, set(given["app"]) - {""})
    for job in call.jobs if needs else ():
        if job.app:
            check_parameters(job, needs[job.app].parameters)
    existing = _existing_keys(tx, call) if any(given["key"]) else {}
    new = [(place, job) for place, job in enumerate(call.jobs) if place not in existing]
    if not new:
        return Added(first=0, existing=existing)
    first = tx.take_ids("jobs", len(new))
    ids = {place: first + i for i, (place, _) in enumerate(new)}
    for place, twin in existing.items():
        ids[place] = ids[twin.place] if isinstance(twin, _Twin) else twin
    parents = _Parents(tx, call, ids, {place for place, twin in existing.items() if not isinstance(twin, _Twin)})
    if existing:
        given = _columns([job for _, job in new])
    rows = _rows(tx, call.staged_insert, given, [ids[place] for place, _ in new], needs, parents)
    tx.insert(_INSERT_JOBS, rows)
    parents.write(tx)
    if events := _events(tx, rows):
        tx.insert(INSERT_EVENTS, events)
    if staged_insert is None:
        fail_descendants(tx, parents.lost)
    else:
        extend_staged_insert(tx, staged_insert, first, first + len(new) - 1)
    return Added(first=first, existing={place: ids[place] for place in existing})


_INSERT_JOBS = Insertion(jobs)
_INSERT_EDGES = insert(job_edges)


def _columns(given: Sequence[Job]) -> dict[str, tuple[Any, ...]]:
    """Return the jobs' values by field."""
    return dict(zip(FIELDS, zip(*[astuple(job) for job in given], strict=True), strict=True))


def _check(jobs_: Sequence[Job], given: dict[str, tuple[Any, ...]]) -> None:
    try:
        check_columns("jobs", given)
        for command in set(given["command"]) - {""}:
            _check_command("jobs", command)
        if not any(given["id"]):
            return
    except InvalidInput:
        pass
    for job in jobs_:  # for a message that names the job
        job.check()
        _check_command(f"job {job.name!r}", job.command)
        if job.id is not None:
            msg = f"job {job.name!r} has the id {job.id} already: ids are given by the database"
            raise InvalidInput(msg)


def _check_command(what: str, command: str) -> None:
    if command and not split(command, what=f"{what}: command"):
        msg = f"{what}: the command is blank"
        raise InvalidInput(msg)


class _Twin:
    """Stands for the id of an earlier job of the same call with the same key."""

    def __init__(self, place: int) -> None:
        self.place = place


def _existing_keys(tx: Tx, call: AddJobs) -> dict[int, Any]:
    """Return place -> id (or twin) of jobs whose key exists; takes keys over from other unpublished staged inserts."""
    places: dict[str, int] = {}
    existing: dict[int, Any] = {}
    for place, job in enumerate(call.jobs):
        if job.key is not None:
            if job.key in places:
                existing[place] = _Twin(places[job.key])
            else:
                places[job.key] = place
    # One at a time from here on, as when the ids are taken: else all who add a key in this moment would collide.
    tx.lock_ids("jobs")
    keys = sorted(places)
    for start in range(0, len(keys), 500):
        some = keys[start : start + 500]
        while True:
            found, stolen = _with_keys(tx, some, call.staged_insert)
            if _invalidate(tx, stolen):
                break
        existing.update((places[key], number) for key, number in found.items())
    for place, twin in existing.items():
        if isinstance(twin, _Twin) and twin.place in existing:
            existing[place] = existing[twin.place]
    return existing


def _with_keys(tx: Tx, keys: list[str], staged_insert: int) -> tuple[dict[str, int], dict[int, int]]:
    """Return the jobs that have these keys: key -> id, and id -> staged insert of those in unpublished other ones."""
    query = (
        select(jobs.c.id, jobs.c.key, jobs.c.staged_insert_id, staged_inserts.c.published)
        .outerjoin(staged_inserts, staged_inserts.c.id == jobs.c.staged_insert_id)
        .where(jobs.c.key.in_(keys))
    )
    found: dict[str, int] = {}
    stolen: dict[int, int] = {}
    for row in tx.execute(query):
        if row.published is False and row.staged_insert_id != staged_insert:
            stolen[row.id] = row.staged_insert_id
        else:
            found[row.key] = row.id
    return found, stolen


def _invalidate(tx: Tx, stolen: dict[int, int]) -> bool:
    """Remove jobs from other unpublished staged inserts, which can then no longer be published.

    Their writer was most likely killed. If it lives, it gets an error on publishing and nothing that was acknowledged
    is lost.

    Returns:
        False, and nothing was removed, where one was published or abandoned in this moment.
    """
    if not stolen:
        return True
    among = staged_inserts.c.id.in_(sorted(set(stolen.values())))
    still_open = (
        select(staged_inserts.c.id)
        .where(among, not_(staged_inserts.c.published))
        .order_by(staged_inserts.c.id)
        .with_for_update()
    )
    if set(tx.execute(still_open).scalars()) != set(stolen.values()):
        return False
    tx.execute(update(staged_inserts).where(among).values(invalidated=True))
    ids = sorted(stolen)
    tx.execute(delete(job_edges).where(or_(job_edges.c.child_id.in_(ids), job_edges.c.parent_id.in_(ids))))
    tx.execute(delete(job_events).where(job_events.c.job_id.in_(ids)))
    tx.execute(delete(jobs).where(jobs.c.id.in_(ids)))
    return True


class _Parents:
    """The parents of the jobs of one call: which there are, which have not finished, which are lost."""

    def __init__(self, tx: Tx, call: AddJobs, ids: dict[int, int], existing: set[int]) -> None:
        outside: set[int] = set()
        self._of: dict[int, set[int]] = {}
        for place, job in enumerate(call.jobs):
            if not job.parents:
                continue
            found = set()
            for parent in job.parents:
                if not isinstance(parent, int) or parent == 0 or parent < -place:
                    msg = f"job {job.name!r}: {parent!r} is no parent: give ids, or earlier jobs of the same call"
                    raise InvalidInput(msg)
                number = ids[-parent - 1] if parent < 0 else parent
                found.add(number)
                if parent > 0 or -parent - 1 in existing:
                    outside.add(number)
            self._of[ids[place]] = found
        self._states = self._read(tx, outside, call.staged_insert)

    @staticmethod
    def _read(tx: Tx, outside: set[int], staged_insert: int) -> dict[int, State]:
        """Return the states of parents from before, locked, so that none finishes unseen."""
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
            states.update((row.id, State(row.state)) for row in tx.execute(query))
        missing = outside - states.keys()
        if missing:
            msg = f"there is no job {min(missing)} that could be a parent"
            raise NotFound(msg)
        return states

    def left(self, job: int) -> int:
        """Count the parents that have not finished."""
        return sum(self._states.get(parent) != State.JOB_FINISHED for parent in self._of.get(job, ()))

    def write(self, tx: Tx) -> None:
        """Insert the dependencies."""
        edges = [{"parent_id": parent, "child_id": child} for child, found in self._of.items() for parent in found]
        if edges:
            tx.execute(_INSERT_EDGES, edges)

    def only_new(self, new: set[int]) -> None:
        """Forget the parents of jobs that existed before."""
        self._of = {child: found for child, found in self._of.items() if child in new}

    @property
    def lost(self) -> list[tuple[int, State]]:
        """The parents that ended badly before."""
        return [(parent, state) for parent, state in self._states.items() if state in PARENT_LOST]


def _rows(
    tx: Tx,
    staged_insert: int,
    given: dict[str, tuple[Any, ...]],
    ids: list[int],
    needs: dict[str, AppNeeds],
    parents: _Parents,
) -> Rows:
    """Return the rows of new jobs. Those of a staged insert are not claimable yet, and with parents CREATED."""
    parents.only_new(set(ids))
    flows = workflow_ids(tx, set(given["workflow"]))
    shapes = shapes_of(given)
    classes = class_ids(tx, set(shapes))
    names = zip(given["name"], given["app"], strict=True)
    rows = Rows(
        len(ids),
        same={
            "attempt": 0,
            "retries": 0,
            "staged_insert_id": staged_insert,
            "created_at": tx.now,
            "state_since": tx.now,
        },
        columns={"id": ids, "name": [name or app or "job" for name, app in names]},
    )
    for name in COPIED:
        rows.put(name, given[name])
    for name in EMPTY_AS_NULL:
        if any(given[name]):
            rows.columns[name] = [value or None for value in given[name]]
    rows.put("workflow_id", [flows[name] for name in given["workflow"]])
    rows.put("app_id", [needs[name].id if name else None for name in given["app"]])
    its_class: list[int | None] = [classes[one] for one in shapes]
    rows.put("resource_class_id", its_class)
    if any(given["parents"]):
        left = [parents.left(number) for number in ids]
        if staged_insert:
            states = [State.CREATED.value if of else State.READY.value for of in given["parents"]]
        else:
            waits = zip(left, given["wait_for_parents"], strict=True)
            states = [State.AWAITING_PARENTS.value if n and wait else State.READY.value for n, wait in waits]
        rows.put("parents_left", left)
        rows.columns["state"] = states
        ready = zip(its_class, states, strict=True)
        claim = [one if state == State.READY.value else None for one, state in ready]
    else:
        rows.same.update(parents_left=0, state=State.READY.value)
        claim = its_class
    if not staged_insert:
        rows.put("claim_class", claim)
    return rows


def _events(tx: Tx, rows: Rows) -> Rows:
    """Return the first events of new jobs; a CREATED one gets it when it is promoted."""
    events = Rows(len(rows), same={"at": tx.now, "attempt": 0}, columns={"job_id": rows.columns["id"]})
    if "state" in rows.same:
        events.same["transitions"] = f"CREATED 0, {rows.same['state']} 0"
        return events
    states = zip(rows.columns["id"], rows.columns["state"], strict=True)
    known = [(number, state) for number, state in states if state != State.CREATED]
    events.columns["job_id"] = [number for number, _ in known]
    events.columns["transitions"] = [f"CREATED 0, {state} 0" for _, state in known]
    return replace(events, count=len(known))


@operation(AddEdge)
def add_edge(tx: Tx, call: AddEdge) -> bool:
    """Make a job wait for another.

    Raises:
        InvalidInput: It would close a circle.
        NotFound: A job doesn't exist.
        Conflict: The child has started or ended.
    """
    if call.parent == call.child:
        msg = f"job {call.child} can't be its own parent"
        raise InvalidInput(msg)
    # One at a time: two dependencies added side by side could close a circle that neither sees.
    tx.execute(select(counters.c.last).where(counters.c.name == "jobs").with_for_update())
    query = select(jobs).where(jobs.c.id.in_([call.parent, call.child]), visible())
    found = {row.id: row for row in tx.execute(query.order_by(jobs.c.id).with_for_update())}
    for number in (call.parent, call.child):
        if number not in found:
            msg = f"there is no job {number}"
            raise NotFound(msg)
    pair = {"parent_id": call.parent, "child_id": call.child}
    if tx.execute(select(job_edges).filter_by(**pair)).first():
        return False
    parent, child = found[call.parent], found[call.child]
    if child.launcher_id is not None or child.state not in {State.CREATED, State.AWAITING_PARENTS, State.READY}:
        why = "ended" if child.state in END else "started"
        msg = f"job {call.child} has {why} ({child.state}): it can't wait for job {call.parent} any more"
        raise Conflict(msg)
    _refuse_circle(tx, call)
    tx.execute(_INSERT_EDGES, pair)
    if parent.state == State.JOB_FINISHED:
        return True
    changes: dict[str, Any] = {"parents_left": jobs.c.parents_left + 1}
    if child.state == State.READY and child.wait_for_parents:
        changes |= {"state": State.AWAITING_PARENTS, "state_since": tx.now, "claim_class": None}
        record(tx, [(child.id, [(State.AWAITING_PARENTS, 0)], f"waits for job {parent.id}", child.attempt)])
    tx.execute(update(jobs).where(jobs.c.id == child.id).values(changes))
    if parent.state in PARENT_LOST:
        fail_descendants(tx, [(parent.id, State(parent.state))])
    return True


def _refuse_circle(tx: Tx, call: AddEdge) -> None:
    """Raise InvalidInput where the child is an ancestor of the parent."""
    above = select(literal(call.parent, BigInteger).label("id")).cte("above", recursive=True)
    above = above.union(select(job_edges.c.parent_id).join(above, job_edges.c.child_id == above.c.id))
    if tx.execute(select(above.c.id).where(above.c.id == call.child)).first():
        msg = f"job {call.parent} depends on job {call.child} already: the dependency would close a circle"
        raise InvalidInput(msg)
