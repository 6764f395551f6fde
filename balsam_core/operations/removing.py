"""Operations that remove jobs: the check of all that are to go, and a slice of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from balsam_core.errors import Conflict
from balsam_core.model.calls import CheckRemoval, Edge, RemovedJob, RemoveJobs
from balsam_core.model.filters import NoneOf
from balsam_core.model.states import State
from balsam_core.model.text import still_needed
from balsam_core.operations.conditions import condition, in_chunks, visible
from balsam_core.operations.dependencies import fail_descendants
from balsam_core.operations.execution import operation
from balsam_core.operations.job_rows import delete_jobs
from balsam_core.operations.launchers import first_held, free_of_ended_launchers
from balsam_core.schema.tables import job_edges, jobs, launchers, workflows

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from balsam_core.operations.execution import Tx

MOST_NAMED = 10  # children in a message

_parents = jobs.alias("parents")


@operation(CheckRemoval)
def check_removal(tx: Tx, call: CheckRemoval) -> list[Edge]:
    """Look for what forbids a removal.

    Raises:
        Conflict: A launcher that has not been given up holds a job.
    """
    lives = launchers.c.ended_at.is_(None) & (launchers.c.lease_until >= tx.now)
    if why := first_held(tx, visible(), condition(call.where), lives):
        raise Conflict(why)
    if call.cascade:
        return []
    return _needed(tx, visible(_parents), condition(call.where, _parents), condition(NoneOf([call.where])))


def _needed(tx: Tx, *conditions: ColumnElement[bool]) -> list[Edge]:
    """Return the first dependencies, all of one parent, that meet conditions and whose child has not finished."""
    query = (
        select(job_edges.c.parent_id, jobs.c.id)
        .join(_parents, job_edges.c.parent_id == _parents.c.id)
        .join(jobs, job_edges.c.child_id == jobs.c.id)
        .where(jobs.c.state != State.JOB_FINISHED, *conditions)  # a failed one may run again, and need its files
        .order_by(job_edges.c.parent_id, jobs.c.id)
        .limit(MOST_NAMED)
    )
    rows = tx.execute(query).all()
    return [Edge(parent, child) for parent, child in rows if parent == rows[0][0]]


@operation(RemoveJobs)
def remove_jobs(tx: Tx, call: RemoveJobs) -> list[RemovedJob]:
    """Remove jobs, newest first, so that children go before their parents."""
    free_of_ended_launchers(tx, condition(call.where))
    chosen = (
        select(jobs.c.id, jobs.c.state, jobs.c.launcher_id, jobs.c.name, workflows.c.name.label("workflow"))
        .join(workflows, workflows.c.id == jobs.c.workflow_id)
        .where(visible(), condition(call.where))
        .order_by(jobs.c.id.desc())
        .limit(call.limit)
        .with_for_update(of=jobs)
    )
    rows = tx.execute(chosen).all()
    ids = [row.id for row in rows]
    held = [row.id for row in rows if row.launcher_id is not None]
    for some in in_chunks(held):
        if why := first_held(tx, jobs.c.id.in_(some)):
            raise Conflict(why)
    for some in in_chunks(ids):
        outside = jobs.c.id.not_in(ids), condition(NoneOf([call.where]))  # true also where the condition is NULL
        if edges := _needed(tx, job_edges.c.parent_id.in_(some), *outside):
            raise Conflict(still_needed(edges[0].parent, [edge.child for edge in edges]))
    # Children in a later slice must not wait for ever if no later slice runs.
    fail_descendants(tx, [(row.id, State.USER_KILLED) for row in rows if row.state != State.JOB_FINISHED])
    delete_jobs(tx, ids)
    return [RemovedJob(row.id, row.workflow, row.name) for row in rows]
