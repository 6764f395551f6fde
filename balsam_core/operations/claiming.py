"""The hot path of launchers: taking jobs."""

from __future__ import annotations

import heapq
from functools import cache
from math import floor
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    null,
    outerjoin,
    select,
    update,
)

from balsam_core.errors import Conflict
from balsam_core.model.calls import Claim, ClaimJobs, CountWaiting, ParentRef
from balsam_core.operations.apps import read_apps
from balsam_core.operations.dimensions import RESOURCES
from balsam_core.operations.execution import operation, rebuilds
from balsam_core.operations.rows import WHOLE, in_chunks, jobs_of
from balsam_core.schema.prepared import Prepared, PreparedList
from balsam_core.schema.tables import job_edges, jobs, launchers, resource_classes, workflows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, RowMapping, Select

    from balsam_core.model.calls import Resources, Waiting
    from balsam_core.operations.execution import Tx
    from balsam_core.operations.rows import Known


def _fits(nodes: Any, ranks: Any, gpus: Any, minutes: Any) -> ColumnElement[bool]:  # noqa: ANN401  (values or parameters)
    """Return which resource classes a launcher can run."""
    classes = resource_classes.c
    return and_(
        classes.num_nodes <= nodes,
        classes.ranks_per_node <= ranks,
        classes.gpus_per_rank * classes.ranks_per_node <= gpus,
        classes.wall_minutes <= minutes,
    )


def _fit(resources: Resources) -> ColumnElement[bool]:
    return _fits(resources.nodes, resources.ranks_per_node, resources.gpus_per_node, _minutes(resources))


def _minutes(resources: Resources) -> int:
    """Return the minutes left as the classes have them: whole ones."""
    left = resources.minutes_left
    return _NO_LIMIT if left is None else max(-1, min(_NO_LIMIT, floor(left)))


# ---- claiming


@operation(ClaimJobs)
def claim_jobs(tx: Tx, call: ClaimJobs) -> Claim:
    """Take jobs: SELECT .. FOR UPDATE SKIP LOCKED, then UPDATE, in one statement where the database can.

    Raises:
        Conflict: The launcher's lease is over, and its jobs were given away.
    """
    classes = _classes(tx, call)
    if not classes:
        check_launcher(tx, call.launcher)
        return Claim(jobs=[])
    if call.only is None:
        return _claimed(tx, _take(tx, call, classes), classes)
    return _claimed(tx, _mark(tx, call, _choose_among(tx, call, classes)), classes)


def _stamp(tx: Tx) -> int:
    return tx.request_id.seq if tx.request_id else 0


def _mark(tx: Tx, call: ClaimJobs, rows: Sequence[Mapping[Any, Any]]) -> list[Mapping[Any, Any]]:
    """Take jobs that are locked, and return them as they are now."""
    if rows and tx.run(_STAYS, {"launcher": call.launcher}).first() is None:
        check_launcher(tx, call.launcher)
    for some in in_chunks(row["id"] for row in rows):
        tx.run(*_CLAIM.fill(some, launcher=call.launcher, stamp=_stamp(tx)))
    return [{**row, "launcher_id": call.launcher, "attempt": row["attempt"] + 1} for row in rows]


_TAKEN = {
    "launcher_id": bindparam("launcher", type_=BigInteger),
    "claim_request_seq": bindparam("stamp", type_=BigInteger),
    "attempt": jobs.c.attempt + 1,
    "claim_class": None,
}
_CLAIM = PreparedList(lambda ids: update(jobs).where(jobs.c.id.in_(ids)).values(_TAKEN))


@rebuilds(ClaimJobs)
def rebuild_claim(tx: Tx, call: ClaimJobs) -> Claim:
    """Find the jobs of an earlier claim again by its stamp."""
    query = select(*_NEEDED).where(jobs.c.launcher_id == call.launcher, jobs.c.claim_request_seq == _stamp(tx))
    return _claimed(tx, tx.execute(query.order_by(jobs.c.priority.desc(), jobs.c.id)).mappings().all())


def check_launcher(tx: Tx, launcher: int) -> None:
    """Raise Conflict unless the launcher is registered and has not been given up."""
    row = tx.run(_LAUNCHER, {"launcher": launcher}).first()
    if row is None or row[0] is not None:
        msg = f"launcher {launcher} is not registered, or was given up because its lease was over"
        raise Conflict(msg)


_STAYING = (
    select(launchers.c.id)
    .where(launchers.c.id == bindparam("launcher"), launchers.c.ended_at.is_(None))
    .with_for_update(read=True)
)
"""Keeps a launcher from being given up until the claim ends: what it takes then would be held by nobody for ever."""

_STAYS = Prepared(_STAYING)
_LAUNCHER = Prepared(select(launchers.c.ended_at).where(launchers.c.id == bindparam("launcher")))


def _of_workflow(tx: Tx, name: str) -> int | None:
    """Return a workflow's id; 0 for any, None where there is no such workflow."""
    if not name:
        return 0
    number: int | None = tx.execute(select(workflows.c.id).where(workflows.c.name == name)).scalar()
    return number


class _Class(NamedTuple):
    """A resource class that fits: its first claimable job, and what its jobs need."""

    number: int
    head: int | None
    priority: int | None
    needs: tuple[float, ...]


def _classes(tx: Tx, call: ClaimJobs) -> list[_Class]:
    """Return the classes that fit, for a launcher that has not been given up; else none."""
    resources = call.resources
    limits = {
        "launcher": call.launcher,
        "nodes": resources.nodes,
        "ranks": resources.ranks_per_node,
        "gpus": resources.gpus_per_node,
        "minutes": _minutes(resources),
    }
    if call.only is not None or not call.workflow:
        found = tx.run(ALL_HEADS if call.only is None else _ALL_CLASSES, limits).all()
    else:
        found = tx.run(WORKFLOW_HEADS, limits | {"workflow": call.workflow}).all()
    return [_Class(number, head, priority, tuple(needs)) for number, head, priority, *needs in found]


def _take(tx: Tx, call: ClaimJobs, classes: Sequence[_Class]) -> list[Mapping[Any, Any]]:
    """Take jobs that fit and return them: by priority, then from the class with the oldest job first."""
    heap = [(-one.priority, one.head, one.number) for one in classes if one.head and one.priority is not None]
    heapq.heapify(heap)
    of_workflow = bool(call.workflow)
    at_once = tx.conn.dialect.update_returning_multifrom
    rows: list[Mapping[Any, Any]] = []
    while heap and len(rows) < call.limit:
        _, _, number = heapq.heappop(heap)
        wanted = call.limit - len(rows)
        place = {"workflow": call.workflow, "class": number, "limit": wanted, "floor": -heap[0][0] if heap else _LOWEST}
        if at_once:
            taking = place | {"launcher": call.launcher, "stamp": _stamp(tx)}
            taken = tx.read(claiming(of_workflow, bool(heap)), taking)
            some: list[Mapping[Any, Any]] = sorted(taken, key=lambda row: (-row["priority"], row["id"]))
        else:
            some = _mark(tx, call, tx.read(locking(of_workflow, bool(heap)), place))
        rows += some
        if len(some) < wanted and heap:
            following = tx.run(below(of_workflow), place).first()
            if following is not None:
                heapq.heappush(heap, (-following[0], following[1], number))
    return rows


_LOWEST = -(2**31)
_NO_LIMIT = 2**31 - 1


_NEEDED = (
    *WHOLE,
    select(workflows.c.name)
    .where(workflows.c.id == jobs.c.workflow_id)
    .correlate(jobs)
    .scalar_subquery()
    .label("workflow"),
    exists(select(job_edges.c.parent_id).where(job_edges.c.child_id == jobs.c.id).correlate(jobs)).label("has_parents"),
)
"""What is read of claimed jobs at once."""


def _claimable(of_workflow: bool) -> list[ColumnElement[bool]]:  # noqa: FBT001
    if not of_workflow:
        return []
    flow = select(workflows.c.id).where(workflows.c.name == bindparam("workflow")).scalar_subquery()
    return [jobs.c.workflow_id == flow]


def _firsts(columns: Iterable[Any], of_workflow: bool, bounded: bool) -> Select[Any]:  # noqa: FBT001
    """Return the query that locks the first jobs of a class, or of some priorities: one index filters and orders."""
    return (
        select(*columns)
        .where(
            *_claimable(of_workflow),
            jobs.c.claim_class == bindparam("class", type_=BigInteger),
            *([jobs.c.priority >= bindparam("floor")] if bounded else []),
        )
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True)
    )


@cache
def locking(of_workflow: bool, bounded: bool) -> Prepared:  # noqa: FBT001
    """Return the query that locks jobs."""
    return Prepared(_firsts(_NEEDED, of_workflow, bounded), returns=_NEEDED)


@cache
def claiming(of_workflow: bool, bounded: bool) -> Prepared:  # noqa: FBT001
    """Return the statement that takes jobs; the part that chooses them is carried out once, because it locks."""
    chosen = _firsts([jobs.c.id], of_workflow, bounded).cte("chosen")
    stays = _STAYING.cte("stays")
    taking = update(jobs).where(jobs.c.id == chosen.c.id, exists(select(stays.c.id)))
    taking = taking.values(_TAKEN).returning(*_NEEDED)
    return Prepared(taking, returns=_NEEDED)


@cache
def below(of_workflow: bool) -> Prepared:  # noqa: FBT001
    """Return the query for the first job of a class below a priority."""
    return Prepared(
        select(jobs.c.priority, jobs.c.id)
        .where(
            *_claimable(of_workflow),
            jobs.c.claim_class == bindparam("class", type_=BigInteger),
            jobs.c.priority < bindparam("floor"),
        )
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(literal_column("1"))
    )


def _heads(of_workflow: bool) -> Prepared:  # noqa: FBT001
    """Return the query for the classes that fit, each with its first claimable job, if any."""
    first = (
        select(jobs.c.id)
        .where(*_claimable(of_workflow), jobs.c.claim_class == resource_classes.c.id)
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(literal_column("1"))
        .correlate(resource_classes)
        .scalar_subquery()
    )
    classes = select(resource_classes.c.id, *_NEEDS, first.label("head")).where(_fitting()).subquery()
    needs = [classes.c[name] for name in RESOURCES]
    head = outerjoin(classes, jobs, jobs.c.id == classes.c.head)
    return Prepared(select(classes.c.id, classes.c.head, jobs.c.priority, *needs).select_from(head))


def _fitting() -> ColumnElement[bool]:
    alive = select(launchers.c.id).where(launchers.c.id == bindparam("launcher"), launchers.c.ended_at.is_(None))
    fits = _fits(bindparam("nodes"), bindparam("ranks"), bindparam("gpus"), bindparam("minutes"))
    return and_(fits, exists(alive))


_NEEDS = [resource_classes.c[name] for name in RESOURCES]
ALL_HEADS, WORKFLOW_HEADS = _heads(of_workflow=False), _heads(of_workflow=True)
_ALL_CLASSES = Prepared(select(resource_classes.c.id, null(), null(), *_NEEDS).where(_fitting()))


def _choose_among(tx: Tx, call: ClaimJobs, classes: Sequence[_Class]) -> list[RowMapping]:
    """Return those of the given jobs that can be claimed, locked."""
    numbers = [one.number for one in classes]
    rows: list[RowMapping] = []
    for some in in_chunks(call.only or ()):
        query = (
            select(*_NEEDED)
            .where(*_claimable(bool(call.workflow)), jobs.c.id.in_(some), jobs.c.claim_class.in_(numbers))
            .order_by(jobs.c.priority.desc(), jobs.c.id)
            .limit(call.limit - len(rows))
            .with_for_update(skip_locked=True)
        )
        rows += tx.execute(query, {"workflow": call.workflow} if call.workflow else None).mappings()
        if len(rows) >= call.limit:
            break
    return rows


def _claimed(tx: Tx, rows: Sequence[Mapping[Any, Any]], classes: Sequence[_Class] = ()) -> Claim:
    """Return jobs, of which the rows are given, with all that a launcher needs to run them."""
    known: Known = {}
    if classes:
        known.update((name, {one.number: one.needs[at] for one in classes}) for at, name in enumerate(RESOURCES))
    known["workflow"] = {row["workflow_id"]: row["workflow"] for row in rows}
    if not any(row["has_parents"] for row in rows):
        known["parents"] = {}
    taken = jobs_of(tx, rows, known)
    used = {row["app_id"] for row in rows} - {None}
    apps = {app.name: app for app in read_apps(tx, used).values()} if used else {}
    parents: dict[int, ParentRef] = {}
    for some in in_chunks(sorted({parent for job in taken for parent in job.parents if isinstance(parent, int)})):
        query = (
            select(jobs.c.id, workflows.c.name.label("workflow"), jobs.c.name, jobs.c.user_workdir)
            .join(workflows, workflows.c.id == jobs.c.workflow_id)
            .where(jobs.c.id.in_(some))
        )
        for row in tx.execute(query):
            parents[row.id] = ParentRef(row.id, row.workflow, row.name, row.user_workdir or "")
    return Claim(jobs=taken, apps=apps, parents=parents)


@operation(CountWaiting)
def count_waiting(tx: Tx, call: CountWaiting) -> dict[Waiting, int]:
    """Count claimable jobs, up to a limit each."""
    workflow = _of_workflow(tx, call.workflow)
    counts: dict[Waiting, int] = {"fits": 0, "does not fit": 0}
    if workflow is None:
        return counts
    narrow = [jobs.c.workflow_id == workflow] if workflow else []
    fits = _fit(call.resources)
    sides: list[tuple[Waiting, ColumnElement[bool]]] = [("fits", fits), ("does not fit", ~fits)]
    for name, side in sides:
        classes = select(resource_classes.c.id).where(side)
        some = select(jobs.c.id).where(*narrow, jobs.c.claim_class.in_(classes)).limit(call.limit).subquery()
        counts[name] = int(tx.execute(select(func.count()).select_from(some)).scalar_one())
    return counts
