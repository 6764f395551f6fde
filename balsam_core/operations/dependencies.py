"""What the end of a job means to the jobs that wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import bindparam, func, select, update

from balsam_core.model.states import PARENT_LOST, State
from balsam_core.operations.events import record
from balsam_core.operations.rows import in_chunks
from balsam_core.schema.prepared import PreparedList
from balsam_core.schema.tables import job_edges, jobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balsam_core.operations.execution import Tx

__all__ = ["fail_descendants", "lock_parents", "release_children"]

_READY = (
    update(jobs)
    .where(jobs.c.id == bindparam("job_id_"))
    .values(state=State.READY, state_since=bindparam("now"), claim_class=jobs.c.resource_class_id)
)


def release_children(tx: Tx, finished: Iterable[int]) -> None:
    """Tell the children of jobs that have just finished; those that waited for nothing else become READY.

    The parents' rows must have been changed before in this transaction: their locks keep others from adding children
    that would miss the news.
    """
    for parents in in_chunks(sorted(finished)):
        counts = {child: count for child, count in tx.run(*_CHILD_COUNTS.fill(parents)).all()}  # noqa: C416
        if not counts:
            continue
        for count in sorted(set(counts.values())):
            for some in in_chunks(sorted(child for child, n in counts.items() if n == count)):
                tx.execute(_LESS, {"children": some, "count": count})
        free: list[tuple[int, int]] = []
        for some in in_chunks(sorted(counts)):
            free += [(row.id, row.attempt) for row in tx.execute(_NOW_FREE, {"children": some})]
        if free:
            tx.execute(_READY, [{"job_id_": job, "now": tx.now} for job, _ in free])
            record(tx, [(job, [(State.READY, 0)], "", attempt) for job, attempt in free])


_CHILD_COUNTS = PreparedList(
    lambda parents: (
        select(job_edges.c.child_id, func.count())
        .where(job_edges.c.parent_id.in_(parents))
        .group_by(job_edges.c.child_id)
    )
)
_LESS = (
    update(jobs)
    .where(jobs.c.id.in_(bindparam("children", expanding=True)))
    .values(parents_left=jobs.c.parents_left - bindparam("count"))
)
_NOW_FREE = select(jobs.c.id, jobs.c.attempt).where(
    jobs.c.id.in_(bindparam("children", expanding=True)),
    jobs.c.state == State.AWAITING_PARENTS,
    jobs.c.parents_left == 0,
)


def lock_parents(tx: Tx, children: Iterable[int]) -> list[tuple[int, State]]:
    """Keep the parents of these jobs from ending until this transaction does; returns those that have ended badly.

    Whoever makes a job wait must hold this lock: else a parent that ends at the same moment would look for its waiting
    children before they can be seen, and they would wait for ever.
    """
    lost: list[tuple[int, State]] = []
    for some in in_chunks(sorted(children)):
        for number, state in tx.execute(_PARENTS, {"children": some}):
            if state in PARENT_LOST:
                lost.append((number, State(state)))
    return lost


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


def fail_descendants(tx: Tx, lost: Sequence[tuple[int, State]]) -> None:
    """End all descendants that wait for jobs that have just failed or been killed.

    A child of a FAILED parent fails, of a killed one becomes PARENT_KILLED; both say which parent it was.
    """
    front = {job: PARENT_LOST[state] for job, state in lost}
    while front:
        following: dict[int, State] = {}
        reasons: dict[int, tuple[int, int]] = {}
        for some in in_chunks(sorted(front)):
            for child, parent, attempt in tx.execute(_WAITING, {"parents": some}):
                if child not in following:
                    following[child] = front[parent]
                    reasons[child] = (parent, attempt)
        if following:
            tx.execute(
                _END, [{"job_id_": job, "state": state.value, "now": tx.now} for job, state in following.items()]
            )
            record(
                tx,
                [
                    (job, [(state, 0)], f"parent {reasons[job][0]} {_WORDS[state]}", reasons[job][1])
                    for job, state in following.items()
                ],
            )
        front = {job: PARENT_LOST[state] for job, state in following.items()}


_WORDS = {State.FAILED: "failed", State.PARENT_KILLED: "was killed"}
_WAITING = (
    select(job_edges.c.child_id, job_edges.c.parent_id, jobs.c.attempt)
    .join(jobs, jobs.c.id == job_edges.c.child_id)
    .where(
        job_edges.c.parent_id.in_(bindparam("parents", expanding=True)),
        jobs.c.state == State.AWAITING_PARENTS,
    )
    .order_by(job_edges.c.child_id, job_edges.c.parent_id)
    # The user may kill a child in this moment, or another parent be lost.
    .with_for_update(of=jobs)
)
_END = (
    update(jobs)
    .where(jobs.c.id == bindparam("job_id_"))
    .values(state=bindparam("state"), state_since=bindparam("now"), claim_class=None)
)
