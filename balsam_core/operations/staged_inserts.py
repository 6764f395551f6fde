"""Operations on inserts of many calls: hidden until published, promoted in slices, removed where abandoned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, case, delete, func, insert, not_, or_, select, update

from balsam_core.errors import Conflict, NotFound
from balsam_core.model.calls import AbandonStagedInsert, OpenStagedInsert, PromoteStagedInsert, PublishStagedInsert
from balsam_core.model.states import State
from balsam_core.operations.dependencies import fail_descendants, lock_parents
from balsam_core.operations.events import not_before, record_where
from balsam_core.operations.execution import operation
from balsam_core.operations.job_rows import delete_jobs
from balsam_core.schema.tables import jobs, staged_inserts

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from balsam_core.operations.execution import Tx


@operation(OpenStagedInsert)
def open_staged_insert(tx: Tx, call: OpenStagedInsert) -> int:  # noqa: ARG001
    """Begin a staged insert."""
    insert_id = tx.take_ids("staged_inserts")
    row = {"id": insert_id, "published": False, "invalidated": False, "first_id": 0, "last_id": 0, "updated_at": tx.now}
    tx.execute(insert(staged_inserts), row)
    return insert_id


def lock_open_staged_insert(tx: Tx, insert_id: int) -> Any:  # noqa: ANN401  (a database row)
    """Return an unpublished staged insert's row, locked.

    Raises:
        NotFound: There is no such staged insert.
        Conflict: It is published.
    """
    row = tx.execute(select(staged_inserts).where(staged_inserts.c.id == insert_id).with_for_update()).first()
    if row is None:
        raise NotFound(f"insert {insert_id} is no longer there: it was abandoned, or published and completed")
    if row.published:
        raise Conflict(f"insert {insert_id} is published already")
    return row


def extend_staged_insert(tx: Tx, row: Any, first: int, last: int) -> None:  # noqa: ANN401  (a database row)
    """Note that the staged insert now also holds jobs ``first`` to ``last``."""
    values = {"first_id": row.first_id or first, "last_id": last, "updated_at": tx.now}
    tx.execute(update(staged_inserts).where(staged_inserts.c.id == row.id).values(values))


@operation(PublishStagedInsert)
def publish_staged_insert(tx: Tx, call: PublishStagedInsert) -> None:
    """Make a staged insert visible."""
    row = lock_open_staged_insert(tx, call.staged_insert)
    if row.invalidated:
        raise Conflict(
            "some of these jobs were removed before all were there (another process added the same keys, or the insert "
            "was left alone for a day), so nothing was added; run again"
        )
    tx.execute(
        update(staged_inserts)
        .where(staged_inserts.c.id == call.staged_insert)
        .values(published=True, updated_at=tx.now)
    )


@operation(AbandonStagedInsert)
def abandon_staged_insert(tx: Tx, call: AbandonStagedInsert) -> int:
    """Remove a slice of an unpublished staged insert."""
    return abandon_slice(tx, lock_open_staged_insert(tx, call.staged_insert), call.limit)


def abandon_slice(tx: Tx, row: Any, limit: int) -> int:  # noqa: ANN401  (a database row)
    """Remove jobs of a locked unpublished insert, and itself once it is empty; return the number of jobs."""
    this = staged_inserts.c.id == row.id
    slice_ = (
        select(jobs.c.id)
        .where(jobs.c.id.between(row.first_id, row.last_id), jobs.c.staged_insert_id == row.id)
        .order_by(jobs.c.id)
        .limit(limit)
    )
    ids = list(tx.execute(slice_).scalars())
    if not ids:
        tx.execute(delete(staged_inserts).where(this))
        return 0
    delete_jobs(tx, ids)
    tx.execute(update(staged_inserts).where(this).values(first_id=ids[-1] + 1, invalidated=True))
    return len(ids)


@operation(PromoteStagedInsert)
def promote_staged_insert(tx: Tx, call: PromoteStagedInsert) -> bool:
    """Promote a slice of a published staged insert."""
    query = (
        select(staged_inserts)
        .where(staged_inserts.c.published)
        .order_by(staged_inserts.c.id)
        .limit(1)
        .with_for_update()
    )
    row = tx.execute(query.where(staged_inserts.c.id == call.staged_insert) if call.staged_insert else query).first()
    if row is None:
        return False
    slice_ = (
        select(jobs.c.id, jobs.c.state)
        .where(jobs.c.id.between(row.first_id, row.last_id), jobs.c.staged_insert_id == row.id)
        .order_by(jobs.c.id)
        .limit(call.limit)
        .subquery()
    )
    created = func.max(case((slice_.c.state == State.CREATED, 1), else_=0))
    last, count, some_created = tx.execute(select(func.max(slice_.c.id), func.count(), created)).one()
    if count:
        which = and_(jobs.c.id.between(row.first_id, last), jobs.c.staged_insert_id == row.id)
        # READY, but neither held nor claimable: it waits only for this.
        ready = and_(which, jobs.c.state == State.READY, jobs.c.launcher_id.is_(None), jobs.c.claim_class.is_(None))
        tx.execute(update(jobs).where(ready).values(claim_class=jobs.c.resource_class_id))
        if some_created:
            _promote_created(tx, which)
    if count < call.limit:
        tx.execute(delete(staged_inserts).where(staged_inserts.c.id == row.id))
        return not call.staged_insert
    tx.execute(update(staged_inserts).where(staged_inserts.c.id == row.id).values(first_id=last + 1))
    return True


def _promote_created(tx: Tx, which: ColumnElement[bool]) -> None:
    """Move CREATED jobs to READY, or to AWAITING_PARENTS where parents have not finished."""
    created = and_(which, jobs.c.state == State.CREATED)
    ids = list(tx.execute(select(jobs.c.id).where(created).order_by(jobs.c.id).with_for_update()).scalars())
    free = and_(created, or_(jobs.c.parents_left == 0, not_(jobs.c.wait_for_parents)))
    record_where(tx, free, [State.CREATED, State.READY])
    changes = {"state": State.READY, "state_since": not_before(tx), "claim_class": jobs.c.resource_class_id}
    tx.execute(update(jobs).where(free).values(changes))
    record_where(tx, created, [State.CREATED, State.AWAITING_PARENTS])
    waiting = tx.execute(update(jobs).where(created).values(state=State.AWAITING_PARENTS, state_since=not_before(tx)))
    if waiting.rowcount:
        fail_descendants(tx, lock_parents(tx, ids))
