"""Retries that wait for their time: they can't be claimed until a launcher promotes them.

So claiming costs the same however many there are, and no claim compares times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, update

from balsam_core.model.calls import GetDelay, PromoteDelayed
from balsam_core.operations.conditions import in_chunks, in_workflow
from balsam_core.operations.execution import operation
from balsam_core.schema.tables import jobs

if TYPE_CHECKING:
    from datetime import datetime

    from balsam_core.operations.execution import Tx


@operation(GetDelay)
def get_delay(tx: Tx, call: GetDelay) -> float | None:
    """Say how long the first delayed retry still waits."""
    query = select(jobs.c.not_before).where(jobs.c.not_before.is_not(None), *in_workflow(bool(call.workflow)))
    given = {"workflow": call.workflow} if call.workflow else {}
    lists = [None] if call.only is None else list(in_chunks(call.only))
    times: list[datetime] = []
    for some in lists:
        narrowed = query if some is None else query.where(jobs.c.id.in_(some))
        times += tx.execute(narrowed.order_by(jobs.c.not_before).limit(1), given).scalars().all()
    return max(0.0, (min(times) - tx.now).total_seconds()) if times else None


@operation(PromoteDelayed)
def promote_delayed(tx: Tx, call: PromoteDelayed) -> bool:
    """Make a slice of the delayed retries claimable whose time has come."""
    due = select(jobs.c.id).where(jobs.c.not_before <= tx.now).order_by(jobs.c.not_before)
    ids = list(tx.execute(due.limit(call.limit).with_for_update(skip_locked=True)).scalars())
    for some in in_chunks(ids):
        promoted = update(jobs).where(jobs.c.id.in_(some))
        tx.execute(promoted.values(not_before=None, claim_class=jobs.c.resource_class_id))
    return len(ids) == call.limit
