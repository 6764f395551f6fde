"""Adding many jobs: in calls of bounded size, published at once. Knows calls, not databases."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

from msgspec.structs import replace

from balsam_core.errors import BalsamError, Conflict, InvalidInput, NotFound, OutcomeUnknown, TooLarge, Unavailable
from balsam_core.model.calls import (
    MOST_JOBS,
    AbandonStagedInsert,
    AddJobs,
    OpenStagedInsert,
    PromoteStagedInsert,
    PublishStagedInsert,
)
from balsam_core.model.job import Job
from balsam_core.model.text import title

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from balsam_core.model.calls import Added
    from balsam_core.transport.base import Transport

logger = logging.getLogger(__name__)

ABANDON_TIMEOUT = 10.0  # seconds; what is left is pruned after a day


def insert(transport: Transport, jobs: Iterable[Job]) -> list[int]:
    """Add jobs, all of them or none, and fill in their ``id``; returns the ids in the order of the jobs.

    In a sequence parents may come after their children. An iterator is read as it goes, so that memory stays flat but
    for the ids; there a parent must come before its children.
    """
    if not isinstance(jobs, Sequence):
        return _insert_in_order(transport, jobs)
    ordered = _parents_first(jobs)
    ids = _insert_in_order(transport, ordered)
    return ids if ordered is jobs else [job.id or 0 for job in jobs]


def _insert_in_order(transport: Transport, jobs: Iterable[Job]) -> list[int]:
    """Add jobs of which none comes before its parents; in one call, where they are few."""
    stream = iter(jobs)
    chunk = list(islice(stream, MOST_JOBS))
    if not chunk:
        return []
    rest = list(islice(stream, 1))
    if not rest:
        try:
            return _add_chunk(transport, chunk, staged_insert=0)
        except TooLarge:
            if len(chunk) == 1:
                raise
    staged_insert = transport.run(OpenStagedInsert())
    chunks = chain([chunk], _chunks(chain(rest, stream)))
    ids = _add_and_publish(transport, staged_insert, chunks, keep=isinstance(jobs, Sequence))
    try:
        while transport.run(PromoteStagedInsert(staged_insert=staged_insert)):
            pass
    except BalsamError as err:  # the jobs are added; whoever claims next goes on with this
        logger.warning("%d jobs are added, but can't all be claimed yet: %s", len(ids), err)
    return ids


def _chunks(stream: Iterator[Job]) -> Iterator[list[Job]]:
    while chunk := list(islice(stream, MOST_JOBS)):
        yield chunk


def _add_and_publish(transport: Transport, staged_insert: int, chunks: Iterable[list[Job]], *, keep: bool) -> list[int]:
    """Add jobs to a staged insert and publish it; return the ids.

    Args:
        transport: Runs the calls.
        staged_insert: It is open, and removed if this fails.
        chunks: The jobs.
        keep: Whether the jobs exist anyway, so that those of a failed insert can be freed of their ids.
    """
    ids: list[int] = []
    added: list[Job] = []
    publishing = False
    try:
        for chunk in chunks:
            for part in _split_to_fit(transport, chunk, ids, staged_insert=staged_insert):
                added += part if keep else ()
        publishing = True
        _publish(transport, staged_insert)
    except BaseException as err:
        for job in added:
            job.id = None
        _abandon(transport, staged_insert)
        if isinstance(err, OutcomeUnknown) and not publishing:
            raise Unavailable(_NOTHING_ADDED.format(err.message)) from err
        raise
    return ids


def _publish(transport: Transport, staged_insert: int) -> None:
    """Make a staged insert visible.

    Raises:
        OutcomeUnknown: It may be visible, or become so.
    """
    try:
        transport.run(PublishStagedInsert(staged_insert=staged_insert))
    except OutcomeUnknown as unknown:
        try:
            transport.run(AbandonStagedInsert(staged_insert=staged_insert))
        except (Conflict, NotFound):  # it is published, and perhaps completed already
            return
        except BalsamError:
            raise unknown from None
        raise Unavailable(_NOTHING_ADDED.format(unknown.message)) from unknown


_NOTHING_ADDED = "{}; but nothing was published, so no job was added"


def _abandon(transport: Transport, staged_insert: int) -> None:
    """Remove the jobs of an unpublished staged insert, which nobody can see; what is left now is pruned later."""
    try:
        while transport.run(AbandonStagedInsert(staged_insert=staged_insert), timeout=ABANDON_TIMEOUT):
            pass
    except BalsamError:
        logger.debug("staged insert %s is left to be pruned", staged_insert, exc_info=True)


def _split_to_fit(transport: Transport, chunk: list[Job], ids: list[int], *, staged_insert: int) -> Iterator[list[Job]]:
    """Add jobs to a staged insert, in several calls where one would be too large; gives the jobs of each call."""
    try:
        ids += _add_chunk(transport, chunk, staged_insert=staged_insert)
    except TooLarge:
        if len(chunk) == 1:
            raise
        half = len(chunk) // 2
        yield from _split_to_fit(transport, chunk[:half], ids, staged_insert=staged_insert)
        yield from _split_to_fit(transport, chunk[half:], ids, staged_insert=staged_insert)
    else:
        yield chunk


def _add_chunk(transport: Transport, chunk: list[Job], *, staged_insert: int) -> list[int]:
    try:
        with _garbage_collection_paused():
            answer = transport.run(AddJobs(jobs=_resolve_parents(chunk), staged_insert=staged_insert))
    except TooLarge:
        raise
    except InvalidInput:
        for job in chunk:
            job.check()  # the codec, which refuses values of a wrong type, doesn't know the job and its field
        raise
    ids = _ids_of(answer, len(chunk))
    for job, job_id in zip(chunk, ids, strict=True):
        job.id = job_id
    return ids


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Pause Python's garbage collection while a call with thousands of objects, none of them garbage, is made.

    It would search the whole program for every few thousand jobs, a quarter of the time of adding them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _ids_of(answer: Added, count: int) -> list[int]:
    existing = answer.existing_ids
    if not existing:
        return list(range(answer.first_id, answer.first_id + count))
    new_ids = iter(range(answer.first_id, answer.first_id + count))
    return [existing[index] if index in existing else next(new_ids) for index in range(count)]


def _resolve_parents(chunk: list[Job]) -> list[Job]:
    """Return the jobs with their parents as the call takes them: ids, or positions of earlier jobs in this chunk."""
    positions: dict[int, int] = {}
    resolved = []
    for position, job in enumerate(chunk):
        if type(job) is not Job:
            raise InvalidInput(f"only Job objects can be added, not {job!r}")
        if job.id is not None:
            raise Conflict(f"{title('job', job.name)} is added already (id {job.id})")
        if id(job) in positions:
            raise Conflict(f"{title('job', job.name)} is added already in this call")
        if job.parents:
            resolved.append(replace(job, parents=[_parent_reference(job, parent, positions) for parent in job.parents]))
        else:
            resolved.append(job)
        positions[id(job)] = position
    return resolved


def _parent_reference(job: Job, parent: Job | int, positions: dict[int, int]) -> int:
    if isinstance(parent, Job):
        if parent.id is not None:
            return parent.id
        if id(parent) in positions:
            return -(positions[id(parent)] + 1)
        raise InvalidInput(
            f"{title('job', job.name)}: its parent, {title('job', parent.name)}, is not added yet; add it before or in "
            f"the same list"
        )
    if type(parent) is not int or not 0 < parent < 2**63:
        raise InvalidInput(f"{title('job', job.name)}: a parent is a Job or a job's id, not {parent!r}")
    return parent


def _parents_first(jobs: Sequence[Job]) -> Sequence[Job]:
    """Return the jobs with every parent before its children, otherwise in the given order.

    Raises:
        InvalidInput: The jobs depend on each other in a circle.
    """
    if not all(type(job) is Job for job in jobs) or not any(job.parents for job in jobs):
        return jobs
    members = {id(job) for job in jobs}
    ordered: list[Job] = []
    done: set[int] = set()
    path: dict[int, Job] = {}  # the jobs from a root to the present one, in order
    for root in jobs:
        stack = [(root, iter(root.parents))] if id(root) not in done else []
        if stack:
            path[id(root)] = root
        while stack:
            job, parents = stack[-1]
            for parent in parents:
                if not isinstance(parent, Job) or id(parent) in done or id(parent) not in members:
                    continue
                if id(parent) in path:
                    names = [repr(member.name) for member in path.values()]
                    circle = [*names[list(path).index(id(parent)) :], repr(parent.name)]
                    raise InvalidInput(f"these jobs depend on each other in a circle: {' <- '.join(circle)}")
                path[id(parent)] = parent
                stack.append((parent, iter(parent.parents)))
                break
            else:
                stack.pop()
                del path[id(job)]
                done.add(id(job))
                ordered.append(job)
    return ordered
