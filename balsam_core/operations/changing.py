"""Operations with which users change jobs: kill, retry, remove. Each works on a slice, so that none stalls others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, case, exists, func, or_, select, update

from balsam_core.errors import Conflict
from balsam_core.model.calls import Changed, KillJobs, RemovedJob, RemoveJobs, RetryJobs
from balsam_core.model.filters import NoneOf
from balsam_core.model.states import ACTIVE, UNSUCCESSFUL, State
from balsam_core.operations.conditions import condition, in_chunks, visible
from balsam_core.operations.dependencies import fail_descendants, restart
from balsam_core.operations.events import not_before, record_where
from balsam_core.operations.execution import operation
from balsam_core.operations.job_rows import delete_jobs
from balsam_core.operations.launchers import free_jobs_of_ended
from balsam_core.schema.tables import job_edges, jobs, launchers, workflows

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from balsam_core.operations.execution import Tx

MOST_NAMED = 10  # children in a message
MOST_GENERATIONS = 300  # in one transaction; each costs two statements

_parents = jobs.alias("parents")
_HAS_UNSUCCESSFUL_PARENT = exists(
    select(job_edges.c.child_id)
    .join(_parents, _parents.c.id == job_edges.c.parent_id)
    .where(job_edges.c.child_id == jobs.c.id, _parents.c.state.in_(list(UNSUCCESSFUL)))
    .correlate(jobs)
)
"""Whether a parent of the job has failed or been killed."""


def _lock_first(tx: Tx, limit: int | None, *conditions: ColumnElement[bool]) -> list[int]:
    """Lock the first jobs that meet conditions, and return their ids."""
    query = select(jobs.c.id).where(*conditions).order_by(jobs.c.id).limit(limit).with_for_update()
    return list(tx.execute(query).scalars())


@operation(KillJobs)
def kill_jobs(tx: Tx, call: KillJobs) -> Changed:
    """Kill jobs. One that runs is stopped by its launcher, which holds it until then."""
    ids = _lock_first(tx, call.limit, visible(), condition(call.where), jobs.c.state.in_(list(ACTIVE)))
    for some in in_chunks(ids):
        these = jobs.c.id.in_(some)
        record_where(tx, these, [State.USER_KILLED], call.message or "killed by the user")
        tx.execute(
            update(jobs).where(these).values(state=State.USER_KILLED, state_since=not_before(tx), claim_class=None)
        )
    fail_descendants(tx, [(job, State.USER_KILLED) for job in ids])
    return Changed(ids=ids, more=len(ids) == call.limit)


@operation(RetryJobs)
def retry_jobs(tx: Tx, call: RetryJobs) -> Changed:
    """Start ended jobs again; a job whose parent failed or was killed comes back only together with that parent."""
    chosen = condition(call.where)
    unsuccessful = and_(visible(), jobs.c.state.in_(list(UNSUCCESSFUL)))
    ended = and_(unsuccessful, jobs.c.launcher_id.is_(None))
    is_first = not call.last_root and not call.rest
    last_root, held = call.last_root, 0
    if is_first:
        _free_of_ended_launchers(tx, chosen)
        still_held = and_(unsuccessful, chosen, jobs.c.launcher_id.is_not(None))
        held = tx.execute(select(func.count()).select_from(jobs).where(still_held)).scalar_one()
    roots: list[int] = []
    if not call.rest and last_root >= 0:
        free = or_(~_HAS_UNSUCCESSFUL_PARENT, ~jobs.c.wait_for_parents)
        roots = _lock_first(tx, call.limit, ended, chosen, free, jobs.c.id > last_root)
        last_root = roots[-1] if len(roots) == call.limit else -1
        if is_first and not roots:
            _refuse_held(tx, unsuccessful, chosen)
            blocked = tx.execute(select(func.min(jobs.c.id)).where(ended, chosen)).scalar()
            if blocked is not None:
                raise Conflict(f"job {blocked} can't run again before its failed or killed parent; retry the parent")
        _set_waiting(tx, roots)
    follows = and_(ended, jobs.c.wait_for_parents, or_(chosen, _ENDED_BY_PARENT), ~_HAS_UNSUCCESSFUL_PARENT)
    generation = call.rest or roots
    descendants: dict[int, bool] = {}  # whether they are chosen themselves
    # Each generation is made to wait at once, so that the next one may follow; the rest is done for all together.
    for _ in range(MOST_GENERATIONS):
        children: list[int] = []
        done = 0
        for some in in_chunks(generation):
            of = jobs.c.id.in_(select(job_edges.c.child_id).where(job_edges.c.parent_id.in_(some)))
            query = select(jobs.c.id, case((chosen, 1), else_=0)).where(follows, of).order_by(jobs.c.id)
            rows = tx.execute(query.limit(call.limit - len(descendants)).with_for_update()).all()
            found = {job: bool(is_chosen) for job, is_chosen in rows}
            _set_waiting(tx, list(found))
            descendants |= found
            children += found
            if len(descendants) >= call.limit:
                break  # these may have more children
            done += len(some)
        generation = children + generation[done:]
        if not generation or len(descendants) >= call.limit:
            break
    restart(tx, roots, "retried by the user")
    restart(tx, sorted(descendants), "its parent runs again")
    ids = roots + [job for job, is_chosen in descendants.items() if is_chosen]
    more = bool(generation) or last_root > 0
    return Changed(ids=ids, more=more, held=held, last_root=last_root, rest=generation)


_ENDED_BY_PARENT = or_(jobs.c.state == State.PARENT_KILLED, and_(jobs.c.state == State.FAILED, jobs.c.attempt == 0))
"""Whether a job ended only because of a parent: it never ran."""


def _free_of_ended_launchers(tx: Tx, chosen: ColumnElement[bool]) -> None:
    """Give back the jobs of launchers that have ended, where one may hold a chosen job."""
    held = exists(select(jobs.c.id).where(jobs.c.launcher_id.is_not(None), chosen))
    if tx.execute(select(held)).scalar():
        free_jobs_of_ended(tx)


def _refuse_held(tx: Tx, *conditions: ColumnElement[bool]) -> None:
    """Raise Conflict where a launcher holds a job; the message says what it does with it."""
    query = (
        select(jobs.c.id, jobs.c.state, launchers)
        .join(launchers, launchers.c.id == jobs.c.launcher_id)
        .where(*conditions)
        .order_by(jobs.c.id)
        .limit(1)
    )
    if row := tx.execute(query).first():
        job, holder = row[0], f"launcher {row[2]} (host {row.host}, pid {row.pid})"
        until = f"{row.lease_until:%Y-%m-%d %H:%M:%S} UTC"
        if row.state in ACTIVE:
            raise Conflict(f"job {job} is held by a launcher, {holder}; kill it first (balsam kill {job})")
        raise Conflict(
            f"job {job} is {row.state}, but {holder} has not yet said that its process has ended: repeat this in a "
            f"moment; if that launcher is dead, the next 'balsam launcher' frees the job, soon after {until}"
        )


def _set_waiting(tx: Tx, ids: list[int]) -> None:
    for some in in_chunks(ids):
        tx.execute(update(jobs).where(jobs.c.id.in_(some)).values(state=State.AWAITING_PARENTS))


@operation(RemoveJobs)
def remove_jobs(tx: Tx, call: RemoveJobs) -> list[RemovedJob]:
    """Remove jobs, newest first, so that children go before their parents."""
    _free_of_ended_launchers(tx, condition(call.where))
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
    if any(row.launcher_id is not None for row in rows):
        for some in in_chunks(ids):
            _refuse_held(tx, jobs.c.id.in_(some))
    for some in in_chunks(ids):
        needed = (
            select(job_edges.c.parent_id, jobs.c.id)
            .join(jobs, job_edges.c.child_id == jobs.c.id)
            .where(
                job_edges.c.parent_id.in_(some),
                jobs.c.state != State.JOB_FINISHED,  # a failed one may run again, and need its files
                jobs.c.id.not_in(ids),
                condition(NoneOf([call.where])),  # true also where the condition is NULL
            )
            .order_by(job_edges.c.parent_id, jobs.c.id)
            .limit(MOST_NAMED)
        )
        if rest := tx.execute(needed).all():
            parent = rest[0][0]
            children = ", ".join(str(child) for of, child in rest if of == parent)
            raise Conflict(
                f"job {parent} can't be removed, since its children {children} have not finished and need it: remove "
                f"them with it (rm --cascade)"
            )
    # Children in a later slice must not wait for ever if no later slice runs.
    fail_descendants(tx, [(row.id, State.USER_KILLED) for row in rows if row.state != State.JOB_FINISHED])
    delete_jobs(tx, ids)
    return [RemovedJob(row.id, row.workflow, row.name) for row in rows]
