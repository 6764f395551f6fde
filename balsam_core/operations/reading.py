"""Operations that read jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, not_, select

from balsam_core.model.calls import CountJobs, CountStates, Edge, GetEdges, GetHistory, GetJobs, GetRows, LastJob
from balsam_core.operations.conditions import condition, in_chunks, page, visible
from balsam_core.operations.events import event_from_row
from balsam_core.operations.execution import operation
from balsam_core.operations.job_rows import read_fields, read_jobs
from balsam_core.schema.tables import job_edges, job_events, jobs, workflows

if TYPE_CHECKING:
    from balsam_core.model.calls import Event
    from balsam_core.model.job import Job
    from balsam_core.operations.execution import Tx


@operation(GetJobs)
def get_jobs(tx: Tx, call: GetJobs) -> list[Job]:
    """Read a page of jobs."""
    return read_jobs(tx, lambda query: page(query, call.where, call.order, call.limit, call.after))


@operation(GetRows)
def get_rows(tx: Tx, call: GetRows) -> list[list[Any]]:
    """Read a page of some fields."""
    return read_fields(tx, call.fields, lambda query: page(query, call.where, call.order, call.limit, call.after))


@operation(CountJobs)
def count_jobs(tx: Tx, call: CountJobs) -> int:
    """Count jobs."""
    chosen = select(jobs.c.id).where(visible(), condition(call.where))
    if call.limit is None:
        query = chosen.with_only_columns(func.count())
    else:
        query = select(func.count()).select_from(chosen.limit(call.limit).subquery())
    return int(tx.execute(query).scalar_one())


@operation(CountStates)
def count_states(tx: Tx, call: CountStates) -> dict[str, dict[str, int]]:
    """Count jobs by state, or by workflow and state."""
    chosen = (visible(), condition(call.where))
    counts: dict[str, dict[str, int]] = {}
    if not call.by_workflow:
        query = select(jobs.c.state, func.count().label("count")).where(*chosen).group_by(jobs.c.state)
        counts[""] = {state: count for state, count in tx.execute(query)}  # noqa: C416
        return counts
    grouped = (
        select(jobs.c.workflow_id, jobs.c.state, func.count().label("count"))
        .where(*chosen)
        .group_by(jobs.c.workflow_id, jobs.c.state)
        .subquery()
    )
    named = select(workflows.c.name, grouped.c.state, grouped.c.count).join(
        grouped, grouped.c.workflow_id == workflows.c.id
    )
    for name, state, count in tx.execute(named.order_by(workflows.c.name)):
        counts.setdefault(name, {})[state] = count
    return counts


@operation(LastJob)
def last_job(tx: Tx, call: LastJob) -> int | None:  # noqa: ARG001
    """Find the newest job."""
    newest: int | None = tx.execute(select(jobs.c.id).where(visible()).order_by(jobs.c.id.desc()).limit(1)).scalar()
    return newest


@operation(GetHistory)
def get_history(tx: Tx, call: GetHistory) -> list[Event]:
    """Read the events of jobs."""
    events = []
    for some in in_chunks(sorted(set(call.jobs))):
        hidden = select(jobs.c.id).where(jobs.c.id.in_(some), not_(visible()))
        query = select(job_events).where(job_events.c.job_id.in_(some), job_events.c.job_id.not_in(hidden))
        events += [event_from_row(row) for row in tx.execute(query.order_by(job_events.c.id))]
    return events


@operation(GetEdges)
def get_edges(tx: Tx, call: GetEdges) -> list[Edge]:
    """Read dependencies."""
    column = job_edges.c.parent_id if call.children_of else job_edges.c.child_id
    edges = []
    for some in in_chunks(sorted(set(call.jobs))):
        query = select(job_edges.c.parent_id, job_edges.c.child_id).where(column.in_(some), visible())
        query = query.join(jobs, jobs.c.id == job_edges.c.child_id)
        query = query.order_by(job_edges.c.parent_id, job_edges.c.child_id)
        edges += [Edge(parent, child) for parent, child in tx.execute(query)]
    return edges
