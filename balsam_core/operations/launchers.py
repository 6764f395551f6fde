"""Operations on launchers: leases, and what becomes of the jobs of one that is gone.

Whether a launcher is gone is decided by those who look at it, not here: the database's clock alone may be set.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from msgspec.structs import asdict
from sqlalchemy import and_, bindparam, exists, func, insert, select, update

from balsam_core.errors import Conflict
from balsam_core.model.calls import (
    CloseLauncher,
    CountHeldByOthers,
    GetKilledJobs,
    GetLaunchers,
    Heartbeat,
    LauncherInfo,
    RegisterLauncher,
    RenewLease,
)
from balsam_core.model.states import State
from balsam_core.operations.claiming import in_workflow
from balsam_core.operations.events import NewEvent, not_before, record
from balsam_core.operations.execution import operation
from balsam_core.schema.tables import jobs, launchers

if TYPE_CHECKING:
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
    for launcher in tx.execute(select(launchers.c.id).where(launchers.c.ended_at.is_not(None), holds)).scalars().all():
        _give_up(tx, launcher, f"launcher {launcher} had ended")


def _give_up(tx: Tx, launcher: int, why: str) -> None:
    """End a launcher and make the jobs that it holds claimable again."""
    tx.execute(update(launchers).where(launchers.c.id == launcher).values(ended_at=tx.now))
    held = select(jobs.c.id, jobs.c.state, jobs.c.state_since, jobs.c.attempt).where(jobs.c.launcher_id == launcher)
    rows = tx.execute(held.order_by(jobs.c.id).with_for_update()).all()
    running = [row for row in rows if row.state == State.RUNNING]
    transitions = [(State.RUN_TIMEOUT, 0.0), (State.RESTART_READY, 0.0)]
    record(tx, [NewEvent(row.id, row.state_since, row.attempt, transitions, why) for row in running])
    mine = jobs.c.launcher_id == launcher
    restart = {"state": State.RESTART_READY, "state_since": not_before(tx)}
    tx.execute(update(jobs).where(mine, jobs.c.state == State.RUNNING).values(restart))
    killed = update(jobs).where(mine, jobs.c.state == State.USER_KILLED)
    tx.execute(killed.values(launcher_id=None))
    tx.execute(update(jobs).where(mine).values(launcher_id=None, claim_class=jobs.c.resource_class_id))


@operation(CloseLauncher)
def close_launcher(tx: Tx, call: CloseLauncher) -> bool:
    """End a launcher and make the jobs that it still holds claimable again."""
    row = tx.execute(select(launchers).where(launchers.c.id == call.launcher).with_for_update()).first()
    if row is None or row.ended_at is not None or call.seen_at not in {None, row.seen_at}:
        return False
    _give_up(tx, call.launcher, call.why or f"launcher {call.launcher} ended")
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
        raise Conflict(f"launcher {call.launcher} was given up, since its lease was over; its jobs belong to others")
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
        lease = values.pop("lease_until") - values["seen_at"]
        silent = tx.now - values["seen_at"]
        found.append(LauncherInfo(**values, silent_seconds=silent.total_seconds(), lease_seconds=lease.total_seconds()))
    return found


@operation(CountHeldByOthers)
def count_held_by_others(tx: Tx, call: CountHeldByOthers) -> int:
    """Count jobs that others hold, as long as some job waits for a parent."""
    waits = select(jobs.c.id).where(*in_workflow(bool(call.workflow)), jobs.c.state == State.AWAITING_PARENTS)
    if not tx.execute(select(exists(waits)), {"workflow": call.workflow}).scalar():
        return 0
    some = (
        select(jobs.c.id)
        .join(launchers, launchers.c.id == jobs.c.launcher_id)
        .where(launchers.c.id != call.launcher, launchers.c.ended_at.is_(None))
        .limit(call.limit)
        .subquery()
    )
    return int(tx.execute(select(func.count()).select_from(some)).scalar_one())
