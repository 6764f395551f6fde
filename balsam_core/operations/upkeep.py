"""Operations on the database itself."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, delete, not_, or_, select

from balsam_core.model.calls import GetInfo, Info, Prune
from balsam_core.operations.execution import operation
from balsam_core.operations.staged_inserts import abandon_slice
from balsam_core.schema.tables import meta, processed_requests, staged_inserts
from balsam_core.schema.version import current

if TYPE_CHECKING:
    from balsam_core.operations.execution import Tx

MAX_REPLY_AGE = timedelta(days=7)
MAX_UNPUBLISHED_AGE = timedelta(days=1)


@operation(GetInfo)
def get_info(tx: Tx, call: GetInfo) -> Info:  # noqa: ARG001
    """Tell identity, schema and time."""
    db_id = tx.execute(select(meta.c.value).where(meta.c.name == "db_id")).scalar_one()
    return Info(db_id=db_id, schema=current(tx.conn) or "", now=tx.now)


@operation(Prune)
def prune(tx: Tx, call: Prune) -> int:
    """Forget old answers, and inserts that were never published."""
    old = (
        select(processed_requests.c.client_id, processed_requests.c.seq)
        .where(processed_requests.c.processed_at < tx.now - MAX_REPLY_AGE)
        .limit(call.limit)
    )
    rows = tx.execute(old).all()
    for start in range(0, len(rows), 200):
        ours = [
            and_(processed_requests.c.client_id == client, processed_requests.c.seq == seq)
            for client, seq in rows[start : start + 200]
        ]
        tx.execute(delete(processed_requests).where(or_(*ours)))
    left_behind = select(staged_inserts).where(
        not_(staged_inserts.c.published), staged_inserts.c.updated_at < tx.now - MAX_UNPUBLISHED_AGE
    )
    # Locked, since its writer may still live and publish it at the same moment.
    row = tx.execute(left_behind.order_by(staged_inserts.c.id).limit(1).with_for_update(skip_locked=True)).first()
    return len(rows) + (abandon_slice(tx, row, call.limit) if row is not None else 0)
