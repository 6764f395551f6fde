"""Operations that find out why jobs wait or have failed: through all generations of parents, in one statement each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import exists, func, not_, or_, select

from balsam_core.errors import NotFound
from balsam_core.model.calls import Blockers, GetBlockers, GetRootFailures, JobState
from balsam_core.model.states import UNSUCCESSFUL, State, stored_state
from balsam_core.operations.conditions import condition, visible
from balsam_core.operations.execution import operation
from balsam_core.schema.tables import job_edges, jobs

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from balsam_core.operations.execution import Tx

_parents = jobs.alias("parents")
_children = jobs.alias("children")
_above = jobs.alias("parents_of_parents")
HAS_UNSUCCESSFUL_PARENT = exists(
    select(job_edges.c.child_id)
    .join(_parents, _parents.c.id == job_edges.c.parent_id)
    .where(job_edges.c.child_id == jobs.c.id, _parents.c.state.in_(list(UNSUCCESSFUL)))
    .correlate(jobs)
)
"""Whether a parent of the job has failed or been killed."""


@operation(GetBlockers)
def get_blockers(tx: Tx, call: GetBlockers) -> Blockers:
    """Find the parents, and the first causes, that a job waits for or was ended by.

    Raises:
        NotFound: There is no such job.
    """
    of_job = select(jobs.c.state, jobs.c.claim_class).where(jobs.c.id == call.job, visible())
    row = tx.execute(of_job).first()
    if row is None:
        raise NotFound(f"there is no job {call.job}")
    ended = stored_state(call.job, row.state) in UNSUCCESSFUL

    def blocks(state: ColumnElement[str]) -> ColumnElement[bool]:
        return state.in_(list(UNSUCCESSFUL)) if ended else state != State.JOB_FINISHED

    # A job that doesn't wait for its parents is not kept by them.
    above = select(jobs.c.id, jobs.c.state, jobs.c.wait_for_parents.label("waits")).where(jobs.c.id == call.job)
    tree = above.cte("above", recursive=True)
    tree = tree.union(
        select(_parents.c.id, _parents.c.state, _parents.c.wait_for_parents)
        .select_from(tree)
        .join(job_edges, job_edges.c.child_id == tree.c.id)
        .join(_parents, _parents.c.id == job_edges.c.parent_id)
        .where(tree.c.waits, blocks(_parents.c.state))
    )
    blocked = exists(
        select(job_edges.c.child_id)
        .join(_above, _above.c.id == job_edges.c.parent_id)
        .where(job_edges.c.child_id == tree.c.id, blocks(_above.c.state))
        .correlate(tree)
    )
    causes = select(tree.c.id, tree.c.state).where(tree.c.id != call.job, or_(not_(tree.c.waits), not_(blocked)))
    found = tx.execute(causes.order_by(tree.c.id)).all()
    if not found:
        return Blockers(claimable=row.claim_class is not None)
    direct = (
        select(_parents.c.id, _parents.c.state)
        .join(job_edges, job_edges.c.parent_id == _parents.c.id)
        .where(job_edges.c.child_id == call.job, blocks(_parents.c.state))
    )
    parents = tx.execute(direct.order_by(_parents.c.id)).all()
    return Blockers(
        claimable=row.claim_class is not None,
        parents=[JobState(job, stored_state(job, state)) for job, state in parents[: call.limit]],
        parent_count=len(parents),
        causes=[JobState(job, stored_state(job, state)) for job, state in found[: call.limit]],
        cause_count=len(found),
    )


@operation(GetRootFailures)
def get_root_failures(tx: Tx, call: GetRootFailures) -> dict[int, int]:
    """Find the failures that no other one explains, each with the number of those that it explains."""
    own = or_(not_(HAS_UNSUCCESSFUL_PARENT), not_(jobs.c.wait_for_parents))
    roots = select(jobs.c.id).where(visible(), jobs.c.state == State.FAILED, condition(call.where), own)
    followed = (
        select(job_edges.c.child_id, func.min(job_edges.c.parent_id))
        .join(_children, _children.c.id == job_edges.c.child_id)
        .join(_parents, _parents.c.id == job_edges.c.parent_id)
        .where(_children.c.state == State.FAILED, _children.c.wait_for_parents, _parents.c.state == State.FAILED)
        .group_by(job_edges.c.child_id)
    )
    parent_of: dict[int, int] = {child: parent for child, parent in tx.execute(followed)}  # noqa: C416
    root_of: dict[int, int] = {}
    for child in parent_of:
        path = []
        job = child
        while job in parent_of and job not in root_of:
            path.append(job)
            job = parent_of[job]
        root = root_of.get(job, job)
        root_of.update(dict.fromkeys(path, root))
    counts = Counter(root_of.values())
    return {job: counts[job] for job in tx.execute(roots.order_by(jobs.c.id)).scalars()}
