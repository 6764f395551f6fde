"""Keys of jobs: finding the jobs that have those of new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import not_, select, update

from balsam_core.operations.job_rows import COLUMNS_OF_JOB, columns_of, delete_jobs, jobs_from_columns
from balsam_core.schema.tables import jobs, staged_inserts

if TYPE_CHECKING:
    from balsam_core.model.calls import AddJobs
    from balsam_core.model.job import Job
    from balsam_core.operations.execution import Tx

KEYS_IN_LIST = 500


class KeyMatches(NamedTuple):
    """The jobs of a call whose keys exist, by index in the call.

    Attributes:
        stored: To the id of the stored job that has the key.
        repeated: To the index of the first of the new jobs of the call that have the key.
        own: Ids of stored jobs of the same staged insert.
        jobs: The stored jobs by id; empty where existing ones are kept whatever they are.
    """

    stored: dict[int, int]
    repeated: dict[int, int]
    own: set[int]
    jobs: dict[int, Job]


NO_MATCHES = KeyMatches({}, {}, set(), {})


def find_existing_keys(tx: Tx, call: AddJobs) -> KeyMatches:
    """Find the keys that exist; those in other unpublished staged inserts are taken over from them."""
    first_with: dict[str, int] = {}
    stored: dict[int, int] = {}
    repeated: dict[int, int] = {}
    own: set[int] = set()
    rows: list[Any] = []
    for index, job in enumerate(call.jobs):
        if job.key is not None and first_with.setdefault(job.key, index) != index:
            repeated[index] = first_with[job.key]
    # One at a time from here on, as when the ids are taken: else all who add a key at the same time would collide.
    tx.lock_ids("jobs")
    keys = sorted(first_with)
    for start in range(0, len(keys), KEYS_IN_LIST):
        some = keys[start : start + KEYS_IN_LIST]
        while True:
            found, unpublished = _jobs_with_keys(tx, some, call)
            if _invalidate(tx, unpublished):
                break
        stored.update((first_with[row.key], row.id) for row in found)
        own.update(row.id for row in found if row.published is False)
        rows += found
    stored.update((index, stored[first]) for index, first in repeated.items() if first in stored)
    repeated = {index: first for index, first in repeated.items() if index not in stored}
    stored_jobs = [] if call.if_exists == "keep" else jobs_from_columns(tx, columns_of(rows))
    return KeyMatches(stored, repeated, own, {job.id: job for job in stored_jobs if job.id is not None})


def _jobs_with_keys(tx: Tx, keys: list[str], call: AddJobs) -> tuple[list[Any], dict[int, int]]:
    """Return the rows of jobs that have these keys, and id -> staged insert of those in other unpublished ones."""
    columns = (jobs.c.id, jobs.c.key) if call.if_exists == "keep" else COLUMNS_OF_JOB
    query = (
        select(*columns, jobs.c.staged_insert_id, staged_inserts.c.published)
        .outerjoin(staged_inserts, staged_inserts.c.id == jobs.c.staged_insert_id)
        .where(jobs.c.key.in_(keys))
    )
    found = []
    unpublished: dict[int, int] = {}
    for row in tx.execute(query):
        if row.published is False and row.staged_insert_id != call.staged_insert:
            unpublished[row.id] = row.staged_insert_id
        else:
            found.append(row)
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
