"""Keys of jobs: adding a job whose key exists gives the existing job."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import not_, select, update

from balsam_core.operations.job_rows import delete_jobs
from balsam_core.schema.tables import jobs, staged_inserts

if TYPE_CHECKING:
    from balsam_core.model.calls import AddJobs
    from balsam_core.operations.execution import Tx

KEYS_IN_LIST = 500


class KeyMatches(NamedTuple):
    """The jobs of a call whose keys exist, by index in the call.

    Attributes:
        stored: To the id of the stored job that has the key.
        repeated: To the index of the first of the new jobs of the call that have the key.
    """

    stored: dict[int, int]
    repeated: dict[int, int]


def find_existing_keys(tx: Tx, call: AddJobs) -> KeyMatches:
    """Find the keys that exist; those in other unpublished staged inserts are taken over from them."""
    first_with: dict[str, int] = {}
    stored: dict[int, int] = {}
    repeated: dict[int, int] = {}
    for index, job in enumerate(call.jobs):
        if job.key is not None and first_with.setdefault(job.key, index) != index:
            repeated[index] = first_with[job.key]
    # One at a time from here on, as when the ids are taken: else all who add a key at the same time would collide.
    tx.lock_ids("jobs")
    keys = sorted(first_with)
    for start in range(0, len(keys), KEYS_IN_LIST):
        some = keys[start : start + KEYS_IN_LIST]
        while True:
            found, unpublished = _jobs_with_keys(tx, some, call.staged_insert)
            if _invalidate(tx, unpublished):
                break
        stored.update((first_with[key], job_id) for key, job_id in found.items())
    stored.update((index, stored[first]) for index, first in repeated.items() if first in stored)
    return KeyMatches(stored, {index: first for index, first in repeated.items() if index not in stored})


def _jobs_with_keys(tx: Tx, keys: list[str], staged_insert: int) -> tuple[dict[str, int], dict[int, int]]:
    """Return the jobs that have these keys: key -> id, and id -> staged insert of those in other unpublished ones."""
    query = (
        select(jobs.c.id, jobs.c.key, jobs.c.staged_insert_id, staged_inserts.c.published)
        .outerjoin(staged_inserts, staged_inserts.c.id == jobs.c.staged_insert_id)
        .where(jobs.c.key.in_(keys))
    )
    found: dict[str, int] = {}
    unpublished: dict[int, int] = {}
    for row in tx.execute(query):
        if row.published is False and row.staged_insert_id != staged_insert:
            unpublished[row.id] = row.staged_insert_id
        else:
            found[row.key] = row.id
    return found, unpublished


def _invalidate(tx: Tx, unpublished: dict[int, int]) -> bool:
    """Remove jobs from other unpublished staged inserts, which can then no longer be published.

    Their writer was most likely killed. If it lives, it gets an error on publishing and nothing that was acknowledged
    is lost.

    Returns:
        False, and nothing was removed, where one was published or abandoned meanwhile.
    """
    if not unpublished:
        return True
    among = staged_inserts.c.id.in_(sorted(set(unpublished.values())))
    still_open = (
        select(staged_inserts.c.id)
        .where(among, not_(staged_inserts.c.published))
        .order_by(staged_inserts.c.id)
        .with_for_update()
    )
    if set(tx.execute(still_open).scalars()) != set(unpublished.values()):
        return False
    tx.execute(update(staged_inserts).where(among).values(invalidated=True))
    delete_jobs(tx, sorted(unpublished))
    return True
