"""Dependencies between jobs: adding one, and what the end of a job means to the jobs that wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, and_, bindparam, case, exists, func, insert, literal, or_, select, update

from balsam_core.errors import Conflict, InvalidInput, NotFound
from balsam_core.model.calls import AddEdge
from balsam_core.model.states import CHILD_END_STATE, END, UNSUCCESSFUL, State
from balsam_core.operations.conditions import in_chunks, visible
from balsam_core.operations.events import NewEvent, not_before, record, record_where
from balsam_core.operations.execution import operation
from balsam_core.schema.prepared import PreparedList
from balsam_core.schema.tables import job_edges, jobs
from balsam_core.schema.types import UTCDateTime

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import BindParameter, Select

    from balsam_core.operations.execution import Tx


LATER_PARENT = "depends on job {}"
"""The message of the event when a dependency is added to a job, by which the parents given first are known."""


@operation(AddEdge)
def add_edge(tx: Tx, call: AddEdge) -> bool:
    """Make a job wait for another.

    Raises:
        InvalidInput: It would close a circle.
        NotFound: A job doesn't exist.
        Conflict: The child has started or ended.
    """
    if call.parent == call.child:
        raise InvalidInput(f"job {call.child} can't be its own parent")
    # One at a time: two dependencies added side by side could close a circle that neither sees.
    tx.lock_ids("jobs")
    query = select(jobs).where(jobs.c.id.in_([call.parent, call.child]), visible())
    found = {row.id: row for row in tx.execute(query.order_by(jobs.c.id).with_for_update())}
    for job in (call.parent, call.child):
        if job not in found:
            raise NotFound(f"there is no job {job}")
    edge = {"parent_id": call.parent, "child_id": call.child}
    if tx.execute(select(job_edges).filter_by(**edge)).first():
        return False
    parent, child = found[call.parent], found[call.child]
    if child.launcher_id is not None or child.state not in {State.CREATED, State.AWAITING_PARENTS, State.READY}:
        why = "ended" if child.state in END else "started"
        raise Conflict(f"job {call.child} has {why} ({child.state}): it can't wait for job {call.parent} any more")
    refuse_circle(tx, call.parent, call.child)
    tx.execute(insert(job_edges), edge)
    transitions: list[tuple[State, float]] = []
    if parent.state != State.JOB_FINISHED:
        changes: dict[str, Any] = {"parents_left": jobs.c.parents_left + 1}
        if child.state == State.READY and child.wait_for_parents:
            transitions = [(State.AWAITING_PARENTS, 0)]
            changes |= {"state": State.AWAITING_PARENTS, "state_since": not_before(tx), "claim_class": None}
        tx.execute(update(jobs).where(jobs.c.id == child.id).values(changes))
    record(tx, [NewEvent(child.id, child.state_since, child.attempt, transitions, LATER_PARENT.format(parent.id))])
    if parent.state in UNSUCCESSFUL:
        fail_descendants(tx, [(parent.id, State(parent.state))])
    return True


def refuse_circle(tx: Tx, parent_id: int, child_id: int) -> None:
    """Raise InvalidInput where the child is an ancestor of the parent, or the parent itself."""
    above = select(literal(parent_id, BigInteger).label("id")).cte("above", recursive=True)
    above = above.union(select(job_edges.c.parent_id).join(above, job_edges.c.child_id == above.c.id))
    if tx.execute(select(above.c.id).where(above.c.id == child_id)).first():
        raise InvalidInput(f"job {parent_id} depends on job {child_id} already: the dependency would close a circle")


def release_children(tx: Tx, finished: Iterable[int]) -> None:
    """Count down for the children of jobs that have just finished; those that wait for nothing else become READY.

    The parents' rows must have been changed before in this transaction: their locks keep others from adding children
    that would not be counted.
    """
    for parents in in_chunks(sorted(finished)):
        counts = {child: count for child, count in tx.run_prepared(*_CHILD_COUNTS.fill(parents)).fetchall()}  # noqa: C416
        if not counts:
            continue
        for count in sorted(set(counts.values())):
            for some in in_chunks(sorted(child for child, n in counts.items() if n == count)):
                tx.execute(_COUNT_DOWN, {"children": some, "count": count})
        free: list[NewEvent] = []
        for some in in_chunks(sorted(counts)):
            free += [
                NewEvent(row.id, row.state_since, row.attempt, [(State.READY, 0)])
                for row in tx.execute(_NOW_FREE, {"children": some})
            ]
        for some in in_chunks(one.job for one in free):
            tx.execute(_MAKE_READY, {"ids": some, "now": tx.now})
        record(tx, free)


_CHILD_COUNTS = PreparedList(
    lambda parents: (
        select(job_edges.c.child_id, func.count())
        .where(job_edges.c.parent_id.in_(parents))
        .group_by(job_edges.c.child_id)
    )
)
_COUNT_DOWN = (
    update(jobs)
    .where(jobs.c.id.in_(bindparam("children", expanding=True)))
    .values(parents_left=jobs.c.parents_left - bindparam("count"))
)
_NOW_FREE = select(jobs.c.id, jobs.c.state_since, jobs.c.attempt).where(
    jobs.c.id.in_(bindparam("children", expanding=True)),
    jobs.c.state == State.AWAITING_PARENTS,
    jobs.c.parents_left == 0,
)

_CHOSEN = jobs.c.id.in_(bindparam("ids", expanding=True))
_NOW = bindparam("now", type_=UTCDateTime())
_SINCE = case((jobs.c.state_since > _NOW, jobs.c.state_since), else_=_NOW)  # as of not_before()
# Many jobs in one statement: each would be a round trip, of which a launcher has no time for 100,000.
_MAKE_READY = (
    update(jobs).where(_CHOSEN).values(state=State.READY, state_since=_SINCE, claim_class=jobs.c.resource_class_id)
)


def lock_parents(tx: Tx, children: Iterable[int]) -> list[tuple[int, State]]:
    """Keep the parents of these jobs from ending until this transaction does; returns those that have ended badly.

    Whoever makes a job wait must hold this lock: else a parent that ends at the same moment would look for its waiting
    children before they can be seen, and they would wait for ever.
    """
    unsuccessful: list[tuple[int, State]] = []
    for some in in_chunks(sorted(children)):
        rows = tx.execute(_PARENTS, {"children": some})
        unsuccessful += [(job, State(state)) for job, state in rows if state in UNSUCCESSFUL]
    return unsuccessful


_PARENTS = (
    select(jobs.c.id, jobs.c.state)
    .where(
        jobs.c.id.in_(
            select(job_edges.c.parent_id).where(job_edges.c.child_id.in_(bindparam("children", expanding=True)))
        )
    )
    .order_by(jobs.c.id)
    .with_for_update(read=True)
)


def fail_descendants(tx: Tx, unsuccessful: Sequence[tuple[int, State]]) -> None:
    """End all descendants that wait for jobs that have just failed or been killed.

    A child of a FAILED parent fails, of a killed one becomes PARENT_KILLED; both say which parent it was.
    """
    for state in _REASONS:
        parents = [job for job, end in unsuccessful if CHILD_END_STATE[end] == state]
        ended = set(parents)
        while parents:  # others may have added children before their parents were locked
            parents = _end_waiting_below(tx, parents, state, ended)


def _end_waiting_below(tx: Tx, parents: Sequence[int], state: State, ended: set[int]) -> list[int]:
    """End the descendants that wait now and return them; they are added to the ``ended``."""
    waiting: set[int] = set()
    for some in in_chunks(sorted(parents)):
        waiting.update(row[0] for row in tx.run_prepared(*_WAITING_BELOW.fill(some)).fetchall())
    locked = {
        row.id: row for some in in_chunks(sorted(waiting)) for row in tx.execute(_LOCK_WAITING, {"children": some})
    }
    known = ended | locked.keys()
    parent_of: dict[int, int] = {}
    for some in in_chunks(locked):
        edges = tx.run_prepared(*_EDGES_ABOVE.fill(some)).fetchall()
        parent_of.update((child, parent) for child, parent in edges if parent in known)
    # Those without a parent here are below one that somebody else has changed before it was locked.
    events = [
        NewEvent(one.id, one.state_since, one.attempt, [(state, 0)], f"parent {parent_of[one.id]} {_REASONS[state]}")
        for one in locked.values()
        if one.id in parent_of
    ]
    for some in in_chunks(one.job for one in events):
        tx.execute(_END_CHILDREN, {"ids": some, "state": state.value, "now": tx.now})
    record(tx, events)
    ended.update(parent_of)
    return list(parent_of)


_REASONS = {State.FAILED: "failed", State.PARENT_KILLED: "was killed"}


def _waiting_below(parents: list[BindParameter[int]]) -> Select[Any]:
    """Return the query for the descendants that wait; in one statement, since a chain may have 10,000 generations."""
    is_waiting = jobs.c.state == State.AWAITING_PARENTS.value
    waits = exists(select(jobs.c.id).where(jobs.c.id == job_edges.c.child_id, is_waiting))
    children = select(job_edges.c.child_id.label("id")).where(waits.correlate(job_edges))
    below = children.where(job_edges.c.parent_id.in_(parents)).cte("below", recursive=True)
    below = below.union(children.join(below, job_edges.c.parent_id == below.c.id))
    return select(below.c.id)


_WAITING_BELOW = PreparedList(_waiting_below)
_LOCK_WAITING = (
    select(jobs.c.id, jobs.c.state_since, jobs.c.attempt)
    .where(jobs.c.id.in_(bindparam("children", expanding=True)), jobs.c.state == State.AWAITING_PARENTS)
    .order_by(jobs.c.id)
    # The user may kill a child at the same moment, or another parent may end.
    .with_for_update()
)
_END_CHILDREN = update(jobs).where(_CHOSEN).values(state=bindparam("state"), state_since=_SINCE, claim_class=None)
_EDGES_ABOVE = PreparedList(
    lambda children: select(job_edges.c.child_id, job_edges.c.parent_id).where(job_edges.c.child_id.in_(children))
)


def restart(tx: Tx, ids: list[int], message: str) -> None:
    """Move jobs to READY or AWAITING_PARENTS."""
    unsuccessful_parents = lock_parents(tx, ids)
    for some in in_chunks(ids):
        these = jobs.c.id.in_(some)
        count_parents_left(tx, some)
        fresh = {"state_since": not_before(tx), "retries": 0, "return_code": None, "launchers_lost": 0}
        free = and_(these, or_(jobs.c.parents_left == 0, ~jobs.c.wait_for_parents))
        waits = and_(these, jobs.c.parents_left > 0, jobs.c.wait_for_parents)
        record_where(tx, free, [State.READY], message)
        record_where(tx, waits, [State.AWAITING_PARENTS], message)
        tx.execute(update(jobs).where(waits).values(state=State.AWAITING_PARENTS, claim_class=None, **fresh))
        tx.execute(update(jobs).where(free).values(state=State.READY, claim_class=jobs.c.resource_class_id, **fresh))
    fail_descendants(tx, unsuccessful_parents)


def count_parents_left(tx: Tx, ids: Sequence[int]) -> None:
    """Count anew how many parents of jobs have not finished; those are locked."""
    left = dict.fromkeys(ids, 0)
    counts = (
        select(job_edges.c.child_id, func.count())
        .join(_parents, _parents.c.id == job_edges.c.parent_id)
        .where(job_edges.c.child_id.in_(ids), _parents.c.state != State.JOB_FINISHED)
        .group_by(job_edges.c.child_id)
    )
    left.update((child, count) for child, count in tx.execute(counts))
    tx.execute(
        update(jobs).where(jobs.c.id == bindparam("job_id_")).values(parents_left=bindparam("left_")),
        [{"job_id_": job, "left_": count} for job, count in left.items()],
    )


_parents = jobs.alias("parents")
