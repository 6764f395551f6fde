"""The hot path of launchers: taking jobs, and recording what happened to them."""

from __future__ import annotations

import heapq
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, func, select, update

from balsam_core.errors import Conflict
from balsam_core.model.calls import Claim, ClaimJobs, CountWaiting, ParentRef, UpdateJobs
from balsam_core.model.states import END, PARENT_LOST, State, illegal_hop
from balsam_core.operations.apps import read_apps
from balsam_core.operations.events import record
from balsam_core.operations.execution import operation, rebuilds
from balsam_core.operations.family import free_children, lose_children
from balsam_core.operations.rows import in_chunks, read_jobs
from balsam_core.schema.tables import jobs, launchers, resource_classes, workflows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement

    from balsam_core.model.calls import Resources, Update, Waiting
    from balsam_core.operations.execution import Tx


def _fits(resources: Resources) -> ColumnElement[bool]:
    """Return which resource classes a launcher can run."""
    classes = resource_classes.c
    fits = and_(
        classes.num_nodes <= resources.nodes,
        classes.ranks_per_node <= resources.ranks_per_node,
        classes.gpus_per_rank * classes.ranks_per_node <= resources.gpus_per_node,
    )
    if resources.minutes_left is not None:
        fits = and_(fits, classes.wall_minutes <= resources.minutes_left)
    return fits


# ---- claiming


@operation(ClaimJobs)
def claim_jobs(tx: Tx, call: ClaimJobs) -> Claim:
    """Take jobs: SELECT .. FOR UPDATE SKIP LOCKED, then UPDATE, in one transaction.

    Raises:
        Conflict: The launcher's lease is over, and its jobs were given away.
    """
    check_launcher(tx, call.launcher)
    ids = _choose(tx, call) if call.only is None else _choose_among(tx, call)
    if not ids:
        return Claim(jobs=[])
    stamp = tx.ticket.seq if tx.ticket else 0
    for some in in_chunks(ids):
        tx.execute(_CLAIM, {"ids": some, "launcher": call.launcher, "stamp": stamp})
    return _claimed(tx, ids)


_CLAIM = (
    update(jobs)
    .where(jobs.c.id.in_(bindparam("ids", expanding=True)))
    .values(
        launcher_id=bindparam("launcher"),
        claim_call=bindparam("stamp"),
        attempt=jobs.c.attempt + 1,
        claim_class=None,
    )
)


@rebuilds(ClaimJobs)
def rebuild_claim(tx: Tx, call: ClaimJobs) -> Claim:
    """Find the jobs of an earlier claim again by its stamp."""
    stamp = tx.ticket.seq if tx.ticket else 0
    query = select(jobs.c.id).where(jobs.c.launcher_id == call.launcher, jobs.c.claim_call == stamp)
    ids = list(tx.execute(query.order_by(jobs.c.priority.desc(), jobs.c.id)).scalars())
    return _claimed(tx, ids) if ids else Claim(jobs=[])


def check_launcher(tx: Tx, launcher: int) -> None:
    """Raise Conflict unless the launcher is registered and has not been given up."""
    row = tx.execute(_LAUNCHER, {"launcher": launcher}).first()
    if row is None or row.ended_at is not None:
        msg = f"launcher {launcher} is not registered, or was given up because its lease was over"
        raise Conflict(msg)


_LAUNCHER = select(launchers.c.ended_at).where(launchers.c.id == bindparam("launcher"))


def _of_workflow(tx: Tx, name: str) -> list[ColumnElement[bool]] | None:
    """Return the condition of a workflow; empty for any, None where there is no such workflow."""
    if not name:
        return []
    number = tx.execute(select(workflows.c.id).where(workflows.c.name == name)).scalar()
    return None if number is None else [jobs.c.workflow_id == number]


def _choose(tx: Tx, call: ClaimJobs) -> list[int]:
    """Return ids of jobs that fit, locked: by priority, then from the class with the oldest job first."""
    narrow = _of_workflow(tx, call.workflow)
    if narrow is None:
        return []
    heap = list(_heads(tx, call.resources, narrow))
    heapq.heapify(heap)
    ids: list[int] = []
    while heap and len(ids) < call.limit:
        _, _, number = heapq.heappop(heap)
        wanted = call.limit - len(ids)
        query = select(jobs.c.id).where(*narrow, jobs.c.claim_class == number)
        floor = -heap[0][0] if heap else None
        if floor is not None:
            query = query.where(jobs.c.priority >= floor)
        query = query.order_by(jobs.c.priority.desc(), jobs.c.id).limit(wanted)
        some = list(tx.execute(query.with_for_update(skip_locked=True)).scalars())
        ids += some
        if len(some) < wanted and floor is not None:
            below = select(jobs.c.priority, jobs.c.id).where(
                *narrow, jobs.c.claim_class == number, jobs.c.priority < floor
            )
            following = tx.execute(below.order_by(jobs.c.priority.desc(), jobs.c.id).limit(1)).first()
            if following is not None:
                heapq.heappush(heap, (-following.priority, following.id, number))
    return ids


def _heads(tx: Tx, resources: Resources, narrow: list[ColumnElement[bool]]) -> Iterator[tuple[int, int, int]]:
    """Give (-priority, id, class) of the first claimable job of each class that fits."""
    first = (
        select(jobs.c.id)
        .where(*narrow, jobs.c.claim_class == resource_classes.c.id)
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(1)
        .correlate(resource_classes)
        .scalar_subquery()
    )
    classes = select(resource_classes.c.id.label("class_id"), first.label("head")).where(_fits(resources)).subquery()
    query = select(classes.c.class_id, jobs.c.id, jobs.c.priority).join(jobs, jobs.c.id == classes.c.head)
    for row in tx.execute(query):
        yield -row.priority, row.id, row.class_id


def _choose_among(tx: Tx, call: ClaimJobs) -> list[int]:
    """Return those of the given ids that can be claimed, locked."""
    classes = list(tx.execute(select(resource_classes.c.id).where(_fits(call.resources))).scalars())
    narrow = _of_workflow(tx, call.workflow)
    if narrow is None:
        return []
    ids: list[int] = []
    for some in in_chunks(call.only or ()):
        query = (
            select(jobs.c.id)
            .where(*narrow, jobs.c.id.in_(some), jobs.c.claim_class.in_(classes))
            .order_by(jobs.c.priority.desc(), jobs.c.id)
            .limit(call.limit - len(ids))
            .with_for_update(skip_locked=True)
        )
        ids += tx.execute(query).scalars()
        if len(ids) >= call.limit:
            break
    return ids


def _claimed(tx: Tx, ids: list[int]) -> Claim:
    """Return jobs with all that a launcher needs to run them, in the order of ``ids``."""
    found: dict[int | None, Any] = {}
    for some in in_chunks(ids):
        among = jobs.c.id.in_(some)
        found.update((job.id, job) for job in read_jobs(tx, lambda query, among=among: query.where(among)))  # type: ignore[misc]
    taken = [found[number] for number in ids]
    names = {job.app for job in taken if job.app}
    apps = {}
    if names:
        wanted = select(jobs.c.app_id).where(jobs.c.id.in_(ids), jobs.c.app_id.is_not(None)).distinct()
        apps = {app.name: app for app in read_apps(tx, set(tx.execute(wanted).scalars())).values()}
    parents: dict[int, ParentRef] = {}
    for some in in_chunks(sorted({parent for job in taken for parent in job.parents})):
        query = (
            select(jobs.c.id, workflows.c.name.label("workflow"), jobs.c.name, jobs.c.user_workdir)
            .join(workflows, workflows.c.id == jobs.c.workflow_id)
            .where(jobs.c.id.in_(some))
        )
        for row in tx.execute(query):
            parents[row.id] = ParentRef(row.id, row.workflow, row.name, row.user_workdir or "")
    return Claim(jobs=taken, apps=apps, parents=parents)


# ---- recording


@operation(UpdateJobs)
def update_jobs(tx: Tx, call: UpdateJobs) -> dict[int, str]:
    """Record updates; a refused one changes nothing and is named in the answer."""
    found: dict[int, dict[str, Any]] = {}
    for some in in_chunks(sorted({change.job for change in call.updates})):
        for row in tx.execute(_HELD, {"ids": some}):
            found[row.id] = dict(row._mapping)  # noqa: SLF001  (public in spite of its name)
    refused: dict[int, str] = {}
    events = []
    changed: dict[int, dict[str, Any]] = {}
    for change in call.updates:
        held = found.get(change.job)
        why = _refusal(held, change, call.launcher)
        if held is None or why:
            refused[change.job] = why
            continue
        _apply(tx, held, change)
        changed[change.job] = held
        if change.hops:
            events.append((change.job, change.hops, change.message, change.attempt))
    if changed:
        tx.execute(_WRITE, [_written(row) for row in changed.values()])
        record(tx, events)
        free_children(tx, [job for job, row in changed.items() if row["state"] == State.JOB_FINISHED])
        lose_children(tx, [(job, State(row["state"])) for job, row in changed.items() if row["state"] in PARENT_LOST])
    return refused


_HELD = (
    select(
        jobs.c.id,
        jobs.c.state,
        jobs.c.state_since,
        jobs.c.attempt,
        jobs.c.retries,
        jobs.c.launcher_id,
        jobs.c.claim_class,
        jobs.c.resource_class_id,
        jobs.c.return_code,
    )
    .where(jobs.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(jobs.c.id)
    .with_for_update()
)
_WRITTEN = ("state", "state_since", "retries", "launcher_id", "claim_class", "return_code")
_WRITE = update(jobs).where(jobs.c.id == bindparam("job_id_")).values({name: bindparam(name) for name in _WRITTEN})


def _written(row: dict[str, Any]) -> dict[str, Any]:
    return {"job_id_": row["id"]} | {name: row[name] for name in _WRITTEN}


def _refusal(row: dict[str, Any] | None, change: Update, launcher: int) -> str:
    """Return why an update is refused, empty if it isn't."""
    if row is None:
        return "the job was removed"
    if row["launcher_id"] != launcher or row["attempt"] != change.attempt:
        return f"the job is no longer this launcher's (attempt {row['attempt']}, not {change.attempt})"
    if row["state"] == State.USER_KILLED:
        return "the job was killed by the user" if change.hops else ""
    wrong = illegal_hop(State(row["state"]), [state for state, _ in change.hops])
    return f"a job can't go from {wrong[0]} to {wrong[1]}" if wrong else ""


def _apply(tx: Tx, row: dict[str, Any], change: Update) -> None:
    """Change a row as the update says."""
    if change.hops:
        path = [row["state"], *(hop for hop, _ in change.hops)]
        row["retries"] += sum(pair == (State.RUN_ERROR, State.RESTART_READY) for pair in pairwise(path))
        state, age = change.hops[-1]
        row["state"] = state
        row["state_since"] = tx.now - timedelta(seconds=age)
    if change.return_code is not None:
        row["return_code"] = change.return_code
    if row["state"] in END:
        row["launcher_id"] = row["claim_class"] = None
    elif change.release or row["state"] == State.RESTART_READY:
        row["launcher_id"] = None
        row["claim_class"] = row["resource_class_id"]


@operation(CountWaiting)
def count_waiting(tx: Tx, call: CountWaiting) -> dict[Waiting, int]:
    """Count claimable jobs, up to a limit each."""
    narrow = _of_workflow(tx, call.workflow)
    counts: dict[Waiting, int] = {"fits": 0, "does not fit": 0}
    if narrow is None:
        return counts
    fits = _fits(call.resources)
    sides: list[tuple[Waiting, ColumnElement[bool]]] = [("fits", fits), ("does not fit", ~fits)]
    for name, side in sides:
        classes = select(resource_classes.c.id).where(side)
        some = select(jobs.c.id).where(*narrow, jobs.c.claim_class.in_(classes)).limit(call.limit).subquery()
        counts[name] = int(tx.execute(select(func.count()).select_from(some)).scalar_one())
    return counts
