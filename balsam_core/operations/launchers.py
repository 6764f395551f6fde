"""Operations on launchers: leases, and what becomes of the jobs of one that is gone.

Whether a launcher is gone is decided by those who look at it, not here: the database's clock alone may be set.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict
from sqlalchemy import and_, bindparam, exists, func, insert, or_, select, update

from balsam_core.errors import Conflict
from balsam_core.model.calls import (
    Attempt,
    CloseLauncher,
    CountHeldByOthers,
    GetKilledJobs,
    GetLaunchers,
    Heartbeat,
    LauncherInfo,
    RegisterLauncher,
    RenewLease,
)
from balsam_core.model.states import ACTIVE, END, State
from balsam_core.operations.attempts import record_attempts
from balsam_core.operations.conditions import in_workflow
from balsam_core.operations.dependencies import fail_descendants
from balsam_core.operations.events import NewEvent, not_before, record
from balsam_core.operations.execution import operation
from balsam_core.schema.tables import jobs, launchers

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from balsam_core.operations.execution import Tx


@operation(RegisterLauncher)
def register_launcher(tx: Tx, call: RegisterLauncher) -> int:
    """Announce a launcher."""
    free_jobs_of_ended(tx)
    launcher_id = tx.take_ids("launchers")
    given = asdict(call)
    lease = timedelta(seconds=given.pop("lease_seconds"))
    times = {"started_at": tx.now, "seen_at": tx.now, "lease_until": tx.now + lease}
    tx.execute(insert(launchers), {"id": launcher_id, **given, **times})
    return launcher_id


def free_jobs_of_ended(tx: Tx) -> None:
    """Give back jobs that launchers hold which have ended."""
    holds = exists(select(jobs.c.id).where(jobs.c.launcher_id == launchers.c.id))
    for row in tx.execute(select(launchers).where(launchers.c.ended_at.is_not(None), holds)).all():
        _give_up(tx, row, f"launcher {row.id} had ended")


def free_of_ended_launchers(tx: Tx, chosen: ColumnElement[bool]) -> None:
    """Give back the jobs of launchers that have ended, where one may hold a chosen job."""
    held = exists(select(jobs.c.id).where(jobs.c.launcher_id.is_not(None), chosen))
    if tx.execute(select(held)).scalar():
        free_jobs_of_ended(tx)


def first_held(tx: Tx, *conditions: ColumnElement[bool]) -> str:
    """Say of the first job that meets conditions on jobs and launchers who holds it; empty where none is held."""
    query = (
        select(jobs.c.id, jobs.c.state, launchers)
        .join(launchers, launchers.c.id == jobs.c.launcher_id)
        .where(*conditions)
        .order_by(jobs.c.id)
        .limit(1)
    )
    row = tx.execute(query).first()
    if row is None:
        return ""
    job, holder = row[0], f"launcher {row[2]} (host {row.host}, pid {row.pid})"
    if row.state in ACTIVE:
        return f"job {job} is held by a launcher, {holder}; kill it first (balsam kill {job})"
    return (
        f"job {job} is {row.state}, but {holder} has not yet said that its process has ended: repeat this in a "
        f"moment; if that launcher is dead, 'balsam status' on its host frees the job at once, and any other launcher "
        f"soon after {row.lease_until:%Y-%m-%d %H:%M:%S} UTC"
    )


MOST_LAUNCHERS_LOST = 3  # in a row, by one job; then it fails, since it may be what ends them
_BEGUN = frozenset(State) - END - {State.CREATED, State.AWAITING_PARENTS, State.READY, State.RESTART_READY}


def _give_up(tx: Tx, launcher: Any, why: str, *, lost: bool = True) -> None:  # noqa: ANN401  (a database row)
    """End a launcher and make the jobs that it holds claimable again.

    Args:
        tx: The transaction.
        launcher: The launcher's row.
        why: For the history of the jobs that it had begun.
        lost: Whether it went without a word, which counts against the jobs that it had begun.
    """
    tx.execute(update(launchers).where(launchers.c.id == launcher.id).values(ended_at=tx.now))
    mine = jobs.c.launcher_id == launcher.id
    # A job that was given back after its first steps may only have been waiting here.
    here = or_(jobs.c.state == State.RUNNING, jobs.c.state_since >= launcher.started_at)
    begun = and_(mine, jobs.c.state.in_(list(_BEGUN)), here)
    columns = [jobs.c[name] for name in ("id", "state", "state_since", "attempt", "launchers_lost")]
    held = select(*columns).where(begun).order_by(jobs.c.id).with_for_update()
    failed: list[tuple[int, State]] = []
    events, ended = [], []
    for row in tx.execute(held).all():
        path = [State.RUN_TIMEOUT, State.RESTART_READY] if row.state == State.RUNNING else []
        message = why
        if lost and row.launchers_lost + 1 >= MOST_LAUNCHERS_LOST:
            path = [*path[:1], State.FAILED]
            message = f"{why}; {MOST_LAUNCHERS_LOST} launchers in a row were lost with this job: balsam retry {row.id}"
            failed.append((row.id, State.FAILED))
        events.append(NewEvent(row.id, row.state_since, row.attempt, [(state, 0.0) for state in path], message))
        ended.append(_lost_attempt(launcher, row, path[0] if path else State(row.state)))
    record(tx, events)
    record_attempts(tx, ended)
    if lost:
        tx.execute(update(jobs).where(begun).values(launchers_lost=jobs.c.launchers_lost + 1))
        parked = {"state": State.FAILED, "state_since": not_before(tx), "launcher_id": None}
        tx.execute(update(jobs).where(begun, jobs.c.launchers_lost >= MOST_LAUNCHERS_LOST).values(parked))
    restart = {"state": State.RESTART_READY, "state_since": not_before(tx)}
    tx.execute(update(jobs).where(mine, jobs.c.state == State.RUNNING).values(restart))
    killed = update(jobs).where(mine, jobs.c.state == State.USER_KILLED)
    tx.execute(killed.values(launcher_id=None))
    tx.execute(update(jobs).where(mine).values(launcher_id=None, claim_class=jobs.c.resource_class_id))
    fail_descendants(tx, failed)


def _lost_attempt(launcher: Any, job: Any, outcome: State) -> Attempt:  # noqa: ANN401  (database rows)
    return Attempt(
        job_id=job.id,
        attempt=job.attempt,
        launcher_id=launcher.id,
        host=launcher.host,
        started_at=job.state_since,
        outcome=outcome.value,
    )


@operation(CloseLauncher)
def close_launcher(tx: Tx, call: CloseLauncher) -> bool:
    """End a launcher and make the jobs that it still holds claimable again."""
    row = tx.execute(select(launchers).where(launchers.c.id == call.launcher).with_for_update()).first()
    if row is None or row.ended_at is not None or call.seen_at not in {None, row.seen_at}:
        return False
    _give_up(tx, row, call.why or f"launcher {call.launcher} ended", lost=bool(call.why))
    return True


@operation(RenewLease, default_reply=Heartbeat(killed=[]))
def renew_lease(tx: Tx, call: RenewLease) -> Heartbeat:
    """Extend a lease.

    Raises:
        Conflict: The launcher was given up.
    """
    mine = and_(launchers.c.id == call.launcher, launchers.c.ended_at.is_(None))
    changes = {"seen_at": tx.now, "lease_until": tx.now + timedelta(seconds=call.lease_seconds)}
    if not tx.execute(update(launchers).where(mine).values(changes)).rowcount:
        raise Conflict(f"launcher {call.launcher} was given up as lost; its jobs belong to others")
    return Heartbeat(killed=_killed_jobs(tx, call.launcher))


def _killed_jobs(tx: Tx, launcher: int) -> list[int]:
    return list(tx.execute(_KILLED, {"launcher": launcher}).scalars())


_KILLED = select(jobs.c.id).where(jobs.c.launcher_id == bindparam("launcher"), jobs.c.state == State.USER_KILLED)


@operation(GetKilledJobs)
def get_killed_jobs(tx: Tx, call: GetKilledJobs) -> list[int]:
    """Name the jobs that the user killed."""
    return _killed_jobs(tx, call.launcher)


@operation(GetLaunchers)
def get_launchers(tx: Tx, call: GetLaunchers) -> list[LauncherInfo]:  # noqa: ARG001
    """List launchers."""
    held = select(func.count()).select_from(jobs).where(jobs.c.launcher_id == launchers.c.id).scalar_subquery()
    alive = launchers.c.lease_until >= tx.now
    names = ("id", "host", "pid", "boot_id", "process_start", "workflow", "started_at", "seen_at", "lease_until")
    known = [launchers.c[name] for name in names]
    query = select(*known, alive.label("alive"), held.label("jobs")).where(launchers.c.ended_at.is_(None))
    found = []
    for row in tx.execute(query.order_by(launchers.c.id)).mappings():
        values = dict(row)
        lease = values["lease_until"] - values["seen_at"]
        silent = tx.now - values["seen_at"]
        found.append(LauncherInfo(**values, silent_seconds=silent.total_seconds(), lease_seconds=lease.total_seconds()))
    return found


@operation(CountHeldByOthers)
def count_held_by_others(tx: Tx, call: CountHeldByOthers) -> int:
    """Count the jobs of others that matter to an idle launcher."""
    given = {"workflow": call.workflow} if call.workflow else {}
    for_it = [*in_workflow(bool(call.workflow)), *([] if call.only is None else [jobs.c.id.in_(call.only)])]
    waits = exists(select(jobs.c.id).where(*for_it, jobs.c.state == State.AWAITING_PARENTS))
    one_waits = tx.execute(select(waits), given).scalar()
    some = (
        select(jobs.c.id)
        .join(launchers, launchers.c.id == jobs.c.launcher_id)
        .where(launchers.c.id != call.launcher, launchers.c.ended_at.is_(None), *([] if one_waits else for_it))
        .limit(call.limit)
        .subquery()
    )
    return int(tx.execute(select(func.count()).select_from(some), {} if one_waits else given).scalar_one())
