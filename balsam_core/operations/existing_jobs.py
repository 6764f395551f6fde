"""Jobs that are added under keys that exist: compared with the stored ones, refused, or changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, delete, insert, not_, or_, select, update

from balsam_core.errors import Conflict
from balsam_core.model.calls import UNCHANGED
from balsam_core.model.states import END, State
from balsam_core.operations.conditions import in_chunks
from balsam_core.operations.dependencies import (
    LATER_PARENT,
    count_parents_left,
    fail_descendants,
    lock_parents,
    refuse_circle,
)
from balsam_core.operations.events import not_before, record_where
from balsam_core.operations.job_content import changed_fields, describe
from balsam_core.operations.stored_fields import DEFAULT_FOR_NULL, DOCUMENTS
from balsam_core.schema.tables import job_edges, job_events, jobs

if TYPE_CHECKING:
    from balsam_core.model.calls import AddJobs, Existing
    from balsam_core.operations.execution import Tx
    from balsam_core.operations.job_content import Changes
    from balsam_core.operations.job_keys import KeyMatches
    from balsam_core.schema.prepared import Rows


def compare_existing(
    tx: Tx, call: AddJobs, matches: KeyMatches, parents: dict[int, set[int]]
) -> tuple[dict[int, Existing], dict[int, Changes]]:
    """Compare jobs with the ones that have their keys.

    Args:
        tx: The transaction.
        call: The call.
        matches: The jobs whose keys exist.
        parents: The ids of the given jobs' parents, by index in the call.

    Returns:
        What becomes of each stored job, by id, and what is to be changed, by index in the call.

    Raises:
        Conflict: A job has other content and the call doesn't ask to keep or to update the stored one; or a key comes
            twice in one insert with different content.
    """
    if call.if_exists == "keep":
        return dict.fromkeys(matches.stored.values(), "kept"), {}
    existing: dict[int, Existing] = {}
    differing: dict[int, Changes] = {}
    later = _parents_added_later(tx, matches, parents)
    repeated = dict(matches.repeated)
    first_of: dict[int, int] = {}
    for index, job_id in sorted(matches.stored.items()):
        if first_of.setdefault(job_id, index) != index:
            repeated[index] = first_of[job_id]
            continue
        stored = matches.jobs[job_id]
        given = parents.get(index, set()) | later.get(job_id, set())
        changes = changed_fields(stored, call.jobs[index], set(stored.parents), given)  # type: ignore[arg-type]
        if job_id in matches.own:
            _refuse_twice(stored.key, changes)
            continue
        existing[job_id] = "updated" if changes else "same"
        if changes:
            differing[index] = changes
    for index, first in repeated.items():
        before, again = call.jobs[first], call.jobs[index]
        _refuse_twice(before.key, changed_fields(before, again, parents.get(first, set()), parents.get(index, set())))
    if differing and call.if_exists == "error":
        index, changes = next(iter(differing.items()))
        others = f"; {len(differing) - 1} more jobs differ" if len(differing) > 1 else ""
        raise Conflict(
            f"job {matches.stored[index]} with the key {call.jobs[index].key!r} exists with other content "
            f"({describe(changes)}){others}; {UNCHANGED}: take another key, or ask to keep or update what exists "
            f"(if_exists)"
        )
    return existing, differing


def _refuse_twice(key: str | None, changes: Changes) -> None:
    """Raise Conflict where two jobs of one insert have the same key and differ."""
    if changes:
        raise Conflict(
            f"the key {key!r} comes twice with different content ({describe(changes)}); {UNCHANGED}: give each job a "
            f"key of its own"
        )


def _parents_added_later(tx: Tx, matches: KeyMatches, parents: dict[int, set[int]]) -> dict[int, set[int]]:
    """Return, by job, the stored parents that the call doesn't give since they were added after the job was."""
    more: dict[int, set[int]] = {}
    for index, job_id in matches.stored.items():
        stored = matches.jobs[job_id].parents
        if stored and (missing := set(stored) - parents.get(index, set())):
            more[job_id] = missing  # type: ignore[assignment]
    added: dict[int, set[int]] = {}
    for some in in_chunks(sorted(more)):
        rows = tx.execute(select(job_events.c.job_id, job_events.c.message).where(job_events.c.job_id.in_(some)))
        messages = {(job, message) for job, message in rows}
        for job in some:
            added[job] = {parent for parent in more[job] if (job, LATER_PARENT.format(parent)) in messages}
    return added


def update_existing(tx: Tx, rows: Rows, changes: dict[int, Changes]) -> None:
    """Give stored jobs other content.

    Args:
        tx: The transaction.
        rows: The jobs' ids and new content.
        changes: What changes of each, in the order of the rows.

    Raises:
        Conflict: A job has started or ended.
        InvalidInput: New parents would close a circle.
    """
    lock_unstarted(tx, changes)
    values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in (*rows.same, *rows.columns) if name != "id"}
    empty = {name: None for name in (*DEFAULT_FOR_NULL, *DOCUMENTS) if name not in rows.columns}
    statement = update(jobs).where(jobs.c.id == bindparam("job_id_")).values(**values, **empty)
    same = {f"new_{name}": value for name, value in rows.same.items()}
    columns = [f"new_{name}" if name != "id" else "job_id_" for name in rows.columns]
    tx.execute(
        statement,
        [same | dict(zip(columns, row, strict=True)) for row in zip(*rows.columns.values(), strict=True)],
    )
    new_parents = {job: changed["parents"][1] for job, changed in changes.items() if "parents" in changed}
    for some in in_chunks(new_parents):
        tx.execute(delete(job_edges).where(job_edges.c.child_id.in_(some)))
    edges = [{"parent_id": parent, "child_id": job} for job, parents in new_parents.items() for parent in parents]
    if edges:
        tx.execute(insert(job_edges), edges)
    for job, parents in new_parents.items():
        for parent in set(parents) - set(changes[job]["parents"][0]):
            refuse_circle(tx, parent, job)
    _wait_or_not(tx, sorted(changes))


def _wait_or_not(tx: Tx, ids: list[int]) -> None:
    """Move changed jobs between READY and AWAITING_PARENTS, as their parents are now; CREATED ones are promoted later.

    A READY one that can be claimed is claimed by what it needs now.
    """
    unsuccessful_parents = lock_parents(tx, ids)
    message = "changed by the user"
    for some in in_chunks(ids):
        count_parents_left(tx, some)
        these = jobs.c.id.in_(some)
        waits = and_(jobs.c.parents_left > 0, jobs.c.wait_for_parents)
        freed = and_(these, jobs.c.state == State.AWAITING_PARENTS, not_(waits))
        bound = and_(these, jobs.c.state == State.READY, waits)
        record_where(tx, and_(these, not_(or_(freed, bound))), [], message)
        claimable = and_(these, jobs.c.claim_class.is_not(None))
        tx.execute(update(jobs).where(claimable).values(claim_class=jobs.c.resource_class_id))
        record_where(tx, freed, [State.READY], message)
        record_where(tx, bound, [State.AWAITING_PARENTS], message)
        to_wait = {"state": State.AWAITING_PARENTS, "state_since": not_before(tx), "claim_class": None}
        to_run = {"state": State.READY, "state_since": not_before(tx), "claim_class": jobs.c.resource_class_id}
        tx.execute(update(jobs).where(bound).values(to_wait))
        tx.execute(update(jobs).where(freed).values(to_run))
    fail_descendants(tx, unsuccessful_parents)


def lock_unstarted(tx: Tx, changes: dict[int, Changes]) -> None:
    """Lock jobs that are to be changed.

    Raises:
        Conflict: One has started or ended.
    """
    for some in in_chunks(sorted(changes)):
        query = select(jobs.c.id, jobs.c.key, jobs.c.state, jobs.c.launcher_id).where(jobs.c.id.in_(some))
        for row in tx.execute(query.order_by(jobs.c.id).with_for_update()):
            state = State(row.state)
            if row.launcher_id is not None or state not in {State.CREATED, State.AWAITING_PARENTS, State.READY}:
                why = "ended" if state in END else "started"
                raise Conflict(
                    f"job {row.id} with the key {row.key!r} has {why} ({state}), so it can't be changed any more "
                    f"({describe(changes[row.id])}); {UNCHANGED}"
                )
