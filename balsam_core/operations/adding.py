"""Operations that add jobs and dependencies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, and_, delete, insert, literal, or_, select, update

from balsam_core.errors import Conflict, InvalidInput, NotFound
from balsam_core.model.calls import Added, AddEdge, AddJobs
from balsam_core.model.command import split
from balsam_core.model.states import END, PARENT_LOST, State
from balsam_core.operations.batches import extend_batch, lock_open_batch
from balsam_core.operations.dimensions import app_needs, check_parameters, class_ids, shape, workflow_ids
from balsam_core.operations.events import record
from balsam_core.operations.execution import operation
from balsam_core.operations.family import lose_children
from balsam_core.operations.rows import DOCUMENTS, OPTIONAL_TEXTS, in_chunks, visible
from balsam_core.schema.prepared import Prepared
from balsam_core.schema.tables import batches, counters, job_edges, job_events, jobs

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
    "name",
)
"""Fields that are stored as they are."""

EMPTY_AS_NULL = (*OPTIONAL_TEXTS, *DOCUMENTS)


@operation(AddJobs)
def add_jobs(tx: Tx, call: AddJobs) -> Added:
    """Add jobs to the database or to an open batch.

    Raises:
        InvalidInput: A value can't be right.
        NotFound: An app, a parent or the batch doesn't exist.
        Conflict: The batch is published.
    """
    if not call.jobs:
        return Added(first=0)
    batch = lock_open_batch(tx, call.batch) if call.batch else None
    for job in call.jobs:
        _check(job)
    needs = app_needs(tx, {job.app for job in call.jobs if job.app})
    for job in call.jobs:
        if job.app:
            check_parameters(job, needs[job.app].parameters)
    existing = _existing_keys(tx, call)
    new = [(place, job) for place, job in enumerate(call.jobs) if place not in existing]
    if not new:
        return Added(first=0, existing=existing)
    first = tx.take_ids("jobs", len(new))
    ids = {place: first + i for i, (place, _) in enumerate(new)}
    for place, twin in existing.items():
        ids[place] = ids[twin.place] if isinstance(twin, _Twin) else twin
    parents = _Parents(tx, call, ids, {place for place, twin in existing.items() if not isinstance(twin, _Twin)})
    rows = _rows(tx, call.batch, new, ids, needs, parents)
    tx.run(_INSERT_JOBS, rows)
    parents.write(tx)
    if batch is None:
        tx.run(_INSERT_EVENTS, _events(tx, rows))
        lose_children(tx, parents.lost)
    else:
        extend_batch(tx, batch, first, first + len(new) - 1)
    return Added(first=first, existing={place: ids[place] for place in existing})


_INSERT_JOBS = Prepared(insert(jobs), [column.name for column in jobs.columns])
_INSERT_EDGES = insert(job_edges)
_INSERT_EVENTS = Prepared(insert(job_events).inline(), ["job_id", "at", "hops", "message", "attempt"])


def _check(job: Job) -> None:
    job.check()
    if job.command and not split(job.command, what=f"job {job.name!r}: command"):
        msg = f"job {job.name!r}: the command is blank"
        raise InvalidInput(msg)
    if job.id is not None:
        msg = f"job {job.name!r} has the id {job.id} already: ids are given by the database"
        raise InvalidInput(msg)


class _Twin:
    """Stands for the id of an earlier job of the same call with the same key."""

    def __init__(self, place: int) -> None:
        self.place = place


def _existing_keys(tx: Tx, call: AddJobs) -> dict[int, Any]:
    """Return place -> id (or twin) of jobs whose key exists; takes keys over from other unpublished batches."""
    places: dict[str, int] = {}
    existing: dict[int, Any] = {}
    for place, job in enumerate(call.jobs):
        if job.key is not None:
            if job.key in places:
                existing[place] = _Twin(places[job.key])
            else:
                places[job.key] = place
    keys = sorted(places)
    for start in range(0, len(keys), 500):
        some = jobs.c.key.in_(keys[start : start + 500])
        stolen: dict[int, int] = {}
        query = (
            select(jobs.c.id, jobs.c.key, jobs.c.batch_id, batches.c.published)
            .outerjoin(batches, batches.c.id == jobs.c.batch_id)
            .where(some)
        )
        for row in tx.execute(query):
            if row.published is False and row.batch_id != call.batch:
                stolen[row.id] = row.batch_id
            else:
                existing[places[row.key]] = row.id
        if stolen:
            _rob(tx, stolen)
    for place, twin in existing.items():
        if isinstance(twin, _Twin) and twin.place in existing:
            existing[place] = existing[twin.place]
    return existing


def _rob(tx: Tx, stolen: dict[int, int]) -> None:
    """Remove jobs from other unpublished batches, which can then no longer be published.

    Their writer was most likely killed. If it lives, it gets an error on publishing and nothing that was acknowledged
    is lost.
    """
    for batch in sorted(set(stolen.values())):
        lock_open_batch(tx, batch)
    tx.execute(update(batches).where(batches.c.id.in_(sorted(set(stolen.values())))).values(robbed=True))
    ids = sorted(stolen)
    tx.execute(delete(job_edges).where(or_(job_edges.c.child_id.in_(ids), job_edges.c.parent_id.in_(ids))))
    tx.execute(delete(jobs).where(jobs.c.id.in_(ids)))


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
        self._states = self._read(tx, outside, call.batch)

    @staticmethod
    def _read(tx: Tx, outside: set[int], batch: int) -> dict[int, State]:
        """Return the states of parents from before, locked, so that none finishes unseen."""
        states: dict[int, State] = {}
        for some in in_chunks(sorted(outside)):
            query = (
                select(jobs.c.id, jobs.c.state)
                .where(jobs.c.id.in_(some), or_(visible(), and_(jobs.c.batch_id == batch, literal(batch) != 0)))
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
    batch: int,
    new: Sequence[tuple[int, Job]],
    ids: dict[int, int],
    needs: dict[str, AppNeeds],
    parents: _Parents,
) -> list[dict[str, Any]]:
    """Return the rows of new jobs; those of a batch stay CREATED until it is published."""
    parents.only_new({ids[place] for place, _ in new})
    flows = workflow_ids(tx, {job.workflow for _, job in new})
    shapes = [shape(job) for _, job in new]
    classes = class_ids(tx, set(shapes))
    fixed = {
        "launcher_id": None,
        "claim_call": None,
        "attempt": 0,
        "retries": 0,
        "batch_id": batch,
        "created_at": tx.now,
        "state_since": tx.now,
        "return_code": None,
    }
    rows = []
    for (place, job), its_shape in zip(new, shapes, strict=True):
        number = ids[place]
        values = job.values()
        row: dict[str, Any] = {name: values[name] for name in COPIED}
        row.update(fixed)
        for name in EMPTY_AS_NULL:
            row[name] = values[name] or None
        row["id"] = number
        row["name"] = row["name"] or job.app or "job"
        row["workflow_id"] = flows[job.workflow]
        row["app_id"] = needs[job.app].id if job.app else None
        row["resource_class_id"] = row["claim_class"] = classes[its_shape]
        left = row["parents_left"] = parents.left(number) if job.parents else 0
        if batch:
            state = State.CREATED
        elif left and job.wait_for_parents:
            state = State.AWAITING_PARENTS
        else:
            state = State.READY
        row["state"] = state
        if state is not State.READY:
            row["claim_class"] = None
        rows.append(row)
    return rows


def _events(tx: Tx, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "job_id": row["id"],
            "at": tx.now,
            "hops": f"CREATED 0, {row['state']} 0",
            "message": None,
            "attempt": 0,
        }
        for row in rows
    ]


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
        lose_children(tx, [(parent.id, State(parent.state))])
    return True


def _refuse_circle(tx: Tx, call: AddEdge) -> None:
    """Raise InvalidInput where the child is an ancestor of the parent."""
    above = select(literal(call.parent, BigInteger).label("id")).cte("above", recursive=True)
    above = above.union(select(job_edges.c.parent_id).join(above, job_edges.c.child_id == above.c.id))
    if tx.execute(select(above.c.id).where(above.c.id == call.child)).first():
        msg = f"job {call.parent} depends on job {call.child} already: the dependency would close a circle"
        raise InvalidInput(msg)
