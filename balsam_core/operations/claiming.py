"""The hot path of launchers: taking jobs."""

from __future__ import annotations

import heapq
from fractions import Fraction
from functools import cache
from math import floor, inf
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import BigInteger, and_, bindparam, exists, literal_column, null, outerjoin, select, update

from balsam_core.errors import Conflict
from balsam_core.model.calls import Claim, ClaimJobs, HasClaimable, ParentRef
from balsam_core.operations.apps import read_apps
from balsam_core.operations.conditions import in_chunks, in_workflow
from balsam_core.operations.execution import operation, rebuilds
from balsam_core.operations.job_rows import COLUMNS_OF_JOB, columns_of, jobs_from_columns
from balsam_core.operations.stored_fields import RESOURCES
from balsam_core.operations.unfit import FITS, limits
from balsam_core.schema.prepared import Prepared, PreparedList
from balsam_core.schema.tables import job_edges, jobs, launchers, resource_classes, workflows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Row, Select

    from balsam_core.operations.execution import Tx
    from balsam_core.operations.job_rows import Columns, KnownValues


@operation(ClaimJobs)
def claim_jobs(tx: Tx, call: ClaimJobs) -> Claim:
    """Take jobs: SELECT .. FOR UPDATE SKIP LOCKED, then UPDATE, in one statement where the database can.

    Raises:
        Conflict: The launcher was given up as lost, and its jobs were given away.
    """
    classes = _fitting_classes(tx, call)
    if not classes:
        check_launcher(tx, call.launcher)
        return Claim(jobs=[])
    if call.only is None:
        return _build_claim(tx, _claim_by_priority(tx, call, classes), classes)
    rows = _lock_given_jobs(tx, call, classes)
    _assign_locked(tx, call, [row.id for row in rows])
    return _build_claim(tx, _as_assigned(columns_of(rows), call.launcher), classes)


def _request_seq(tx: Tx) -> int:
    return tx.request_id.seq if tx.request_id else 0


def _assign_locked(tx: Tx, call: ClaimJobs, ids: Sequence[int]) -> None:
    """Give locked jobs to the launcher."""
    if ids and tx.run_prepared(_KEEP_LAUNCHER, {"launcher": call.launcher}).fetchone() is None:
        check_launcher(tx, call.launcher)
    for some in in_chunks(ids):
        tx.run_prepared(*_ASSIGN.fill(some, launcher=call.launcher, request_seq=_request_seq(tx)))


def _as_assigned(columns: Columns, launcher: int) -> Columns:
    """Return what was read of jobs as it is now that the launcher has them."""
    if not columns:
        return {}
    attempts = columns["attempt"]
    return {**columns, "launcher_id": [launcher] * len(attempts), "attempt": [number + 1 for number in attempts]}


_ASSIGNED_VALUES = {
    "launcher_id": bindparam("launcher", type_=BigInteger),
    "claim_request_seq": bindparam("request_seq", type_=BigInteger),
    "attempt": jobs.c.attempt + 1,
    "claim_class": None,
}
_ASSIGN = PreparedList(lambda ids: update(jobs).where(jobs.c.id.in_(ids)).values(_ASSIGNED_VALUES))


@rebuilds(ClaimJobs)
def rebuild_claim(tx: Tx, call: ClaimJobs) -> Claim:
    """Find the jobs of an earlier claim again by its request id."""
    claimed = (jobs.c.launcher_id == call.launcher, jobs.c.claim_request_seq == _request_seq(tx))
    query = select(*_READ_COLUMNS).where(*claimed).order_by(jobs.c.priority.desc(), jobs.c.id)
    return _build_claim(tx, columns_of(tx.execute(query).all()))


def check_launcher(tx: Tx, launcher: int) -> None:
    """Raise Conflict unless the launcher is registered and has not been given up."""
    row = tx.run_prepared(_LAUNCHER_END, {"launcher": launcher}).fetchone()
    if row is None or row[0] is not None:
        raise Conflict(f"launcher {launcher} is not registered, or was given up as lost")


_LIVE_LAUNCHER = select(launchers.c.id).where(launchers.c.id == bindparam("launcher"), launchers.c.ended_at.is_(None))
_LOCK_LAUNCHER = _LIVE_LAUNCHER.with_for_update(read=True)
"""Keeps a launcher from being given up until the claim ends: else nobody would ever release what it takes now."""

_KEEP_LAUNCHER = Prepared(_LOCK_LAUNCHER)
_LAUNCHER_END = Prepared(select(launchers.c.ended_at).where(launchers.c.id == bindparam("launcher")))


class _FittingClass(NamedTuple):
    """A resource class that fits: its first claimable job, and what its jobs need."""

    id: int
    head: int | None
    priority: int | None
    needs: tuple[float, ...]


def _fitting_classes(tx: Tx, call: ClaimJobs | HasClaimable) -> list[_FittingClass]:
    """Return the classes that fit, for a launcher that has not been given up; else none."""
    given: dict[str, Any] = {"launcher": call.launcher, **limits(call.resources)}
    if call.only is not None:
        found = tx.run_prepared(_ALL_CLASSES, given).fetchall()
    elif call.workflow:
        found = tx.run_prepared(HEADS_OF_WORKFLOW, given | {"workflow": call.workflow}).fetchall()
    else:
        found = tx.run_prepared(HEADS, given).fetchall()
    return [_FittingClass(row[0], row[1], row[2], tuple(row[3:])) for row in found]


def _claim_by_priority(tx: Tx, call: ClaimJobs, classes: Sequence[_FittingClass]) -> Columns:
    """Take jobs that fit and return them: by priority, then from the class with the oldest job first."""
    heap = [(-one.priority, one.head, one.id) for one in classes if one.head and one.priority is not None]
    heapq.heapify(heap)
    of_workflow = bool(call.workflow)
    in_one_statement = tx.conn.dialect.update_returning_multifrom
    needs = _needs_of(classes)
    budget = _Budget(call)
    rows: list[Sequence[Any]] = []
    while heap and budget.slots >= 1:
        _, _, class_id = heapq.heappop(heap)
        wanted = budget.jobs_of(needs[class_id])
        if not wanted:
            continue
        # Not below the priority of the next class's first job.
        lowest = -heap[0][0] if heap else _LOWEST_PRIORITY
        given = {"workflow": call.workflow, "class": class_id, "limit": wanted, "lowest": lowest}
        if in_one_statement:
            given |= {"launcher": call.launcher, "request_seq": _request_seq(tx)}
            taken = tx.run_prepared(claim_statement(of_workflow, bool(heap)), given).fetchall()
            some: Sequence[Any] = sorted(taken, key=lambda row: (-row[_PRIORITY], row[_ID]))
        else:
            some = tx.run_prepared(lock_query(of_workflow, bool(heap)), given).fetchall()
            _assign_locked(tx, call, [row[_ID] for row in some])
        rows += some
        budget.take(needs[class_id], len(some))
        if len(some) < wanted and heap:
            following = tx.run_prepared(first_below_priority(of_workflow), given).fetchone()
            if following is not None:
                heapq.heappush(heap, (-following[0], following[1], class_id))
    columns = lock_query(of_workflow, False).columns(tx.conn.dialect, rows)
    return columns if in_one_statement else _as_assigned(columns, call.launcher)


def _needs_of(classes: Iterable[_FittingClass]) -> dict[int, dict[str, float]]:
    return {one.id: dict(zip(RESOURCES, one.needs, strict=True)) for one in classes}


class _Budget:
    """How much a claim may still take.

    A job that needs more than is left is taken if it is the first: its launcher keeps for it what becomes free.
    """

    def __init__(self, call: ClaimJobs) -> None:
        self.slots = call.limit
        self._gpus = inf if call.free_gpus is None else call.free_gpus
        self._packed = call.packed
        self._share: Fraction | int = 0  # of the node, by packing counts
        self._is_first = True

    def jobs_of(self, needs: Mapping[str, float]) -> int:
        """Return how many jobs of a class may be taken."""
        slots, gpus = self._of_one(needs)
        count = min(self.slots // slots, floor(self._gpus / gpus + _TINY) if gpus and self._gpus < inf else self.slots)
        if packing := int(needs["node_packing_count"]):
            if not self._packed:
                return 0
            count = min(count, floor((1 - self._share) * packing))
        return max(count, int(self._is_first))

    def take(self, needs: Mapping[str, float], count: int) -> None:
        """Take the needs of so many jobs of a class off."""
        slots, gpus = self._of_one(needs)
        self.slots -= slots * count
        self._gpus -= gpus * count
        if packing := int(needs["node_packing_count"]):
            self._share += Fraction(count, packing)
        self._is_first = self._is_first and not count

    @staticmethod
    def _of_one(needs: Mapping[str, float]) -> tuple[int, float]:
        cores_per_rank = -(-int(needs["threads_per_rank"]) // int(needs["threads_per_core"]))
        ranks = int(needs["ranks_per_node"])
        return ranks * cores_per_rank, ranks * needs["gpus_per_rank"]


_TINY = 1e-6  # of a GPU
_LOWEST_PRIORITY = -(2**31)


_READ_COLUMNS = (
    *COLUMNS_OF_JOB,
    select(workflows.c.name)
    .where(workflows.c.id == jobs.c.workflow_id)
    .correlate(jobs)
    .scalar_subquery()
    .label("workflow"),
    exists(select(job_edges.c.parent_id).where(job_edges.c.child_id == jobs.c.id).correlate(jobs)).label("has_parents"),
)
"""What is read of claimed jobs at once."""

_ID, _PRIORITY = ([column.key for column in _READ_COLUMNS].index(name) for name in ("id", "priority"))


def _first_jobs(columns: Iterable[Any], of_workflow: bool, bounded: bool) -> Select[Any]:  # noqa: FBT001
    """Return the query that locks the first jobs of a class, or those down to a priority: one index does it all."""
    return (
        select(*columns)
        .where(
            *in_workflow(of_workflow),
            jobs.c.claim_class == bindparam("class", type_=BigInteger),
            *([jobs.c.priority >= bindparam("lowest")] if bounded else []),
        )
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True)
    )


@cache
def lock_query(of_workflow: bool, bounded: bool) -> Prepared:  # noqa: FBT001
    """Return the query that locks jobs."""
    return Prepared(_first_jobs(_READ_COLUMNS, of_workflow, bounded), returns=_READ_COLUMNS)


@cache
def claim_statement(of_workflow: bool, bounded: bool) -> Prepared:  # noqa: FBT001
    """Return the statement that takes jobs; the part that chooses them is carried out once, because it locks."""
    chosen = _first_jobs([jobs.c.id], of_workflow, bounded).cte("chosen")
    launcher = _LOCK_LAUNCHER.cte("launcher")
    statement = update(jobs).where(jobs.c.id == chosen.c.id, exists(select(launcher.c.id)))
    statement = statement.values(_ASSIGNED_VALUES).returning(*_READ_COLUMNS)
    return Prepared(statement, returns=_READ_COLUMNS)


@cache
def first_below_priority(of_workflow: bool) -> Prepared:  # noqa: FBT001
    """Return the query for the first job of a class below a priority."""
    return Prepared(
        select(jobs.c.priority, jobs.c.id)
        .where(
            *in_workflow(of_workflow),
            jobs.c.claim_class == bindparam("class", type_=BigInteger),
            jobs.c.priority < bindparam("lowest"),
        )
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(literal_column("1"))
    )


def _heads_query(of_workflow: bool) -> Prepared:  # noqa: FBT001
    """Return the query for the classes that fit, each with its first claimable job, if any."""
    first = (
        select(jobs.c.id)
        .where(*in_workflow(of_workflow), jobs.c.claim_class == resource_classes.c.id)
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(literal_column("1"))
        .correlate(resource_classes)
        .scalar_subquery()
    )
    classes = select(resource_classes.c.id, *_NEEDS, first.label("head")).where(_FITS_LIVE_LAUNCHER).subquery()
    needs = [classes.c[name] for name in RESOURCES]
    head = outerjoin(classes, jobs, jobs.c.id == classes.c.head)
    return Prepared(select(classes.c.id, classes.c.head, jobs.c.priority, *needs).select_from(head))


_FITS_LIVE_LAUNCHER = and_(FITS, exists(_LIVE_LAUNCHER))
_NEEDS = [resource_classes.c[name] for name in RESOURCES]
HEADS, HEADS_OF_WORKFLOW = _heads_query(of_workflow=False), _heads_query(of_workflow=True)
_ALL_CLASSES = Prepared(select(resource_classes.c.id, null(), null(), *_NEEDS).where(_FITS_LIVE_LAUNCHER))


def _lock_given_jobs(tx: Tx, call: ClaimJobs, classes: Sequence[_FittingClass]) -> list[Row[*tuple[Any, ...]]]:
    """Return those of the given jobs that can be claimed and placed, locked."""
    needs = _needs_of(classes)
    class_ids = [one.id for one in classes if call.packed or not needs[one.id]["node_packing_count"]]
    budget = _Budget(call)
    rows: list[Row[*tuple[Any, ...]]] = []
    for some in in_chunks(call.only or ()):
        query = (
            select(*_READ_COLUMNS)
            .where(*in_workflow(bool(call.workflow)), jobs.c.id.in_(some), jobs.c.claim_class.in_(class_ids))
            .order_by(jobs.c.priority.desc(), jobs.c.id)
            .limit(call.limit - len(rows))
            .with_for_update(skip_locked=True)
        )
        for row in tx.execute(query, {"workflow": call.workflow} if call.workflow else None).all():
            if budget.jobs_of(needs[row.resource_class_id]):
                budget.take(needs[row.resource_class_id], 1)
                rows.append(row)
        if budget.slots < 1:
            break
    return rows


def _build_claim(tx: Tx, columns: Columns, classes: Sequence[_FittingClass] = ()) -> Claim:
    """Return jobs, of which the columns are given, with all that a launcher needs to run them."""
    if not columns:
        return Claim(jobs=[])
    known: KnownValues = {}
    if classes:
        known.update((name, {one.id: one.needs[at] for one in classes}) for at, name in enumerate(RESOURCES))
    known["workflow"] = dict(zip(columns["workflow_id"], columns["workflow"], strict=True))
    known["attempts"] = {}
    if not any(columns["has_parents"]):
        known["parents"] = {}
    taken = jobs_from_columns(tx, columns, known)
    used = set(columns["app_id"]) - {None}
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


@operation(HasClaimable)
def has_claimable(tx: Tx, call: HasClaimable) -> bool:
    """Tell whether a claim would find jobs.

    Raises:
        Conflict: The launcher's lease is over, and its jobs were given away.
    """
    found = _fitting_classes(tx, call)
    if not found:
        check_launcher(tx, call.launcher)
    needs = _needs_of(found)
    classes = [one for one in found if call.packed or not needs[one.id]["node_packing_count"]]
    if call.only is None:
        return any(one.head for one in classes)
    fits = (*in_workflow(bool(call.workflow)), jobs.c.claim_class.in_([one.id for one in classes]))
    given = {"workflow": call.workflow} if call.workflow else None
    queries = (select(jobs.c.id).where(*fits, jobs.c.id.in_(some)).limit(1) for some in in_chunks(call.only))
    return any(tx.execute(query, given).first() for query in queries)
