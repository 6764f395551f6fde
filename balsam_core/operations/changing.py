"""Operations with which users kill jobs and start them again. Each works on a slice, so that none stalls others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, case, func, or_, select, update

from balsam_core.model.calls import Changed, KillJobs, RetryJobs
from balsam_core.model.states import ACTIVE, UNSUCCESSFUL, State
from balsam_core.operations.blockers import HAS_UNSUCCESSFUL_PARENT
from balsam_core.operations.conditions import condition, in_chunks, visible
from balsam_core.operations.dependencies import fail_descendants, restart
from balsam_core.operations.events import not_before, record_where
from balsam_core.operations.execution import operation
from balsam_core.operations.launchers import first_held, free_of_dead_launchers
from balsam_core.schema.tables import job_edges, jobs

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from balsam_core.operations.execution import Tx

MOST_GENERATIONS = 300  # in one transaction; each costs two statements


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
            update(jobs)
            .where(these)
            .values(state=State.USER_KILLED, state_since=not_before(tx), claim_class=None, not_before=None)
        )
    fail_descendants(tx, [(job, State.USER_KILLED) for job in ids])
    return Changed(ids=ids, more=len(ids) == call.limit)


@operation(RetryJobs)
def retry_jobs(tx: Tx, call: RetryJobs) -> Changed:
    """Start ended jobs again; a job whose parent failed or was killed comes back only together with that parent."""
    chosen = condition(call.where)
    unsuccessful = and_(visible(), jobs.c.state.in_(list(UNSUCCESSFUL)))
    ended = and_(unsuccessful, jobs.c.launcher_id.is_(None))
    last_root = call.last_root
    if not call.last_root and not call.rest:
        free_of_dead_launchers(tx, chosen)
    roots: list[int] = []
    if not call.rest and last_root >= 0:
        free = or_(~HAS_UNSUCCESSFUL_PARENT, ~jobs.c.wait_for_parents)
        roots = _lock_first(tx, call.limit, ended, chosen, free, jobs.c.id > last_root)
        last_root = roots[-1] if len(roots) == call.limit else -1
        _set_waiting(tx, roots)
    follows = and_(ended, jobs.c.wait_for_parents, or_(chosen, _ENDED_BY_PARENT), ~HAS_UNSUCCESSFUL_PARENT)
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
    if generation or last_root > 0:
        return Changed(ids=ids, more=True, last_root=last_root, rest=generation)
    held, blocked, why = _left(tx, chosen, unsuccessful, ended)
    return Changed(ids=ids, last_root=last_root, held=held, blocked=blocked, why=why)


def _left(tx: Tx, chosen: ColumnElement[bool], *kinds: ColumnElement[bool]) -> tuple[int, int, str]:
    """Return how many of the chosen jobs a launcher holds or a parent blocks, and why one of them can't be retried."""
    unsuccessful, ended = kinds
    count = select(func.count(), func.min(jobs.c.id)).select_from(jobs)
    held, _ = tx.execute(count.where(unsuccessful, chosen, jobs.c.launcher_id.is_not(None))).one()
    waits = and_(ended, jobs.c.wait_for_parents, HAS_UNSUCCESSFUL_PARENT)
    blocked, first = tx.execute(count.where(waits, chosen)).one()
    if held and (why := first_held(tx, unsuccessful, chosen)):
        return held, blocked, why
    why = f"job {first} can't run again before its failed or killed parent; retry the parent" if blocked else ""
    return held, blocked, why


_ENDED_BY_PARENT = or_(jobs.c.state == State.PARENT_KILLED, and_(jobs.c.state == State.FAILED, jobs.c.attempt == 0))
"""Whether a job ended only because of a parent: it never ran."""


def _set_waiting(tx: Tx, ids: list[int]) -> None:
    for some in in_chunks(ids):
        tx.execute(update(jobs).where(jobs.c.id.in_(some)).values(state=State.AWAITING_PARENTS))
