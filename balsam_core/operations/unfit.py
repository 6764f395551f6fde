"""Which jobs fit what a launcher has, and which don't."""

from __future__ import annotations

from math import floor
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, func, select

from balsam_core.model.calls import GetUnfit, Unfit
from balsam_core.operations.conditions import in_workflow
from balsam_core.operations.execution import operation
from balsam_core.schema.tables import jobs, resource_classes

if TYPE_CHECKING:
    from balsam_core.model.calls import Resources
    from balsam_core.operations.execution import Tx

NO_LIMIT = 2**31 - 1
FITS = and_(
    resource_classes.c.num_nodes <= bindparam("nodes"),
    resource_classes.c.ranks_per_node <= bindparam("ranks"),
    resource_classes.c.gpus_per_rank * resource_classes.c.ranks_per_node <= bindparam("gpus"),
    resource_classes.c.wall_minutes <= bindparam("minutes"),
)
"""Which resource classes a launcher can run."""


def limits(resources: Resources) -> dict[str, float]:
    """Return the parameters of :data:`FITS`."""
    left = resources.minutes_left
    return {
        "nodes": resources.nodes,
        "ranks": resources.ranks_per_node,
        "gpus": resources.gpus_per_node,
        "minutes": NO_LIMIT if left is None else max(-1, min(NO_LIMIT, floor(left))),
    }


@operation(GetUnfit)
def get_unfit(tx: Tx, call: GetUnfit) -> list[Unfit]:
    """Tell which claimable jobs don't fit, by shape."""
    given: dict[str, Any] = {**limits(call.resources), "workflow": call.workflow}
    in_class = jobs.c.claim_class.in_(select(resource_classes.c.id).where(~FITS))
    some = (
        select(jobs.c.id, jobs.c.claim_class)
        .where(*in_workflow(bool(call.workflow)), in_class, *([] if call.only is None else [jobs.c.id.in_(call.only)]))
        .limit(call.limit)
        .subquery()
    )
    shape = (
        resource_classes.c.num_nodes.label("nodes"),
        resource_classes.c.ranks_per_node,
        (resource_classes.c.gpus_per_rank * resource_classes.c.ranks_per_node).label("gpus_per_node"),
        resource_classes.c.wall_minutes.label("minutes"),
    )
    query = (
        select(
            func.count().label("jobs"), func.min(some.c.id).label("first"), func.max(some.c.id).label("last"), *shape
        )
        .join(resource_classes, resource_classes.c.id == some.c.claim_class)
        .group_by(*shape)
        .order_by("first")
    )
    return [Unfit(**row) for row in tx.execute(query, given).mappings()]
