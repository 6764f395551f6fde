"""The records of attempts: one row for each, written by whoever ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import astuple
from sqlalchemy import not_, select

from balsam_core.model.calls import Attempt, GetAttempts
from balsam_core.operations.conditions import in_chunks, visible
from balsam_core.operations.execution import operation
from balsam_core.schema.prepared import Insertion, Rows
from balsam_core.schema.tables import attempts, jobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balsam_core.operations.execution import Tx


def record_attempts(tx: Tx, ended: Sequence[Attempt]) -> None:
    """Write attempts that have just ended."""
    if not ended:
        return
    columns = dict(zip(Attempt.__struct_fields__, zip(*map(astuple, ended), strict=True), strict=True))
    rows = Rows(len(ended), columns={"job_id": columns.pop("job_id")})
    for name, values in columns.items():
        rows.put(name, values)
    tx.insert(_INSERT_ATTEMPTS, rows)


_INSERT_ATTEMPTS = Insertion(attempts)


@operation(GetAttempts)
def get_attempts(tx: Tx, call: GetAttempts) -> list[Attempt]:
    """Read attempts."""
    found: list[Attempt] = []
    for some in in_chunks(sorted(set(call.jobs))):
        hidden = select(jobs.c.id).where(jobs.c.id.in_(some), not_(visible()))
        query = select(attempts).where(attempts.c.job_id.in_(some), attempts.c.job_id.not_in(hidden))
        rows = tx.execute(query.order_by(attempts.c.job_id, attempts.c.attempt)).mappings()
        found += [Attempt(**row) for row in rows]
    return found
