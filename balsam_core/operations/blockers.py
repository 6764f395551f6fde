"""Operations that find out why jobs wait or have failed: through all generations of parents, in one statement each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import exists, func, not_, or_, select

from balsam_core.errors import NotFound
from balsam_core.model.calls import Blockers, GetBlockers, GetRootFailures, JobState
from balsam_core.model.states import UNSUCCESSFUL, State, stored_state
from balsam_core.operations.conditions import condition, visible
from balsam_core.operations.execution import operation
from balsam_core.schema.tables import job_edges, jobs, staged_inserts

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select

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
    staged = exists(select(staged_inserts.c.id).where(staged_inserts.c.id == jobs.c.staged_insert_id)).correlate(jobs)
    of_job = select(jobs.c.state, jobs.c.claim_class, staged.label("staged"))
    of_job = of_job.where(jobs.c.id == call.job, visible())
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
    found, cause_count = _first_of(tx, causes, tree.c.id, call.limit)
    claimable, is_staged = row.claim_class is not None, bool(row.staged)
    if not cause_count:
        return Blockers(claimable=claimable, staged=is_staged)
    direct = (
        select(_parents.c.id, _parents.c.state)
        .join(job_edges, job_edges.c.parent_id == _parents.c.id)
        .where(job_edges.c.child_id == call.job, blocks(_parents.c.state))
    )
    parents, parent_count = _first_of(tx, direct, _parents.c.id, call.limit)
    return Blockers(
        claimable=claimable,
        staged=is_staged,
        parents=parents,
        parent_count=parent_count,
        causes=found,
        cause_count=cause_count,
    )


def _first_of(tx: Tx, query: Select[Any], job: ColumnElement[int], limit: int) -> tuple[list[JobState], int]:
    """Return the first jobs of a query for id and state, and how many it has."""
    counted = query.add_columns(func.count().over()).order_by(job).limit(max(1, limit))
    rows = tx.execute(counted).all()
    return [JobState(row[0], stored_state(row[0], row[1])) for row in rows[:limit]], rows[0][2] if rows else 0


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
