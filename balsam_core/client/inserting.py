"""Adding many jobs: in calls of bounded size, published at once. Knows calls, not databases."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, get_args

from msgspec.structs import astuple, replace

from balsam_core.client.slices import told_how_far
from balsam_core.errors import (
    BalsamError,
    Conflict,
    InvalidInput,
    NotFound,
    OutcomeUnknown,
    TooLarge,
    Unavailable,
)
from balsam_core.model.calls import (
    MOST_JOBS,
    AbandonStagedInsert,
    AddJobs,
    IfExists,
    OpenStagedInsert,
    PromoteStagedInsert,
    PublishStagedInsert,
)
from balsam_core.model.job import FIELDS, Job
from balsam_core.model.text import holds_set, shortened, title

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.model.calls import Added, Existing
    from balsam_core.transport.base import Transport

logger = logging.getLogger(__name__)

ABANDON_TIMEOUT = 10.0  # seconds; what is left is pruned after a day


class AddedIds(list[int]):
    """The ids of added jobs, in the order in which the jobs were given.

    Attributes:
        existing: What became of each job that was there before under the same key, by id: "same" for one with the same
            content, "kept" or "updated" as ``if_exists`` asks for.
    """

    def __init__(self, ids: Iterable[int] = (), existing: Mapping[int, Existing] | None = None) -> None:
        super().__init__(ids)
        self.existing: dict[int, Existing] = dict(existing or {})


def insert(transport: Transport, jobs: Iterable[Job], if_exists: IfExists = "error") -> AddedIds:
    """Add jobs, all of them or none, and fill in their ``id``; returns the ids in the order of the jobs.

    In a sequence parents may come after their children. An iterator is read as it goes, so that memory stays flat but
    for the ids; there a parent must come before its children.
    """
    if if_exists not in get_args(IfExists):
        raise InvalidInput(f"if_exists is {if_exists!r}; it can be one of: {', '.join(get_args(IfExists))}")
    _check_iterable(jobs)
    adding = AddJobs(jobs=[], if_exists=if_exists)
    if not isinstance(jobs, Sequence):
        return _insert_in_order(transport, jobs, adding)
    adding = replace(adding, of=len(jobs))
    _check_each(replace(adding, jobs=jobs))
    ordered = _parents_first(jobs)
    if ordered is jobs:
        return _insert_in_order(transport, jobs, adding)
    places = {id(job): place for place, job in enumerate(jobs, 1)}
    adding = replace(adding, places=[places[id(job)] for job in ordered])
    ids = _insert_in_order(transport, ordered, adding)
    return AddedIds((job.id or 0 for job in jobs), ids.existing)


def _check_iterable(jobs: object) -> None:
    if not isinstance(jobs, Iterable) or isinstance(jobs, (str, bytes, Mapping)):
        raise InvalidInput(f"a Job or a list of Job objects can be added, not {shortened(jobs)}")


def _insert_in_order(transport: Transport, jobs: Iterable[Job], adding: AddJobs) -> AddedIds:
    """Add jobs of which none comes before its parents; in one call, where they are few.

    ``adding`` is the call without jobs, with the places of all.
    """
    ids = AddedIds()
    stream = iter(jobs)
    chunk = list(islice(stream, MOST_JOBS))
    if not chunk:
        return ids
    rest = list(islice(stream, 1))
    if not rest:
        try:
            _add_chunk(transport, chunk, ids, replace(adding, of=len(chunk)))
        except TooLarge:
            if len(chunk) == 1:
                raise
        else:
            return ids
    staged_insert = transport.run(OpenStagedInsert())
    chunks = chain([chunk], _chunks(chain(rest, stream)))
    adding = replace(adding, staged_insert=staged_insert)
    to_update = _add_and_publish(transport, adding, chunks, ids, keep=isinstance(jobs, Sequence))
    try:
        while transport.run(PromoteStagedInsert(staged_insert=staged_insert)):
            pass
    except BalsamError as err:  # the jobs are added; whoever claims next goes on with this
        logger.warning("%d jobs are added, but can't all be claimed yet: %s", len(ids), err)
    if to_update:
        _update(transport, to_update)
    return ids


def _update(transport: Transport, jobs: list[Job]) -> None:
    """Change jobs that exist, after an insert of many calls is published; parents have their ids by now.

    Raises:
        PartlyDone: An error came after the new jobs were published.
    """
    updated = AddedIds()
    adding = AddJobs(jobs=[], if_exists="update")
    with told_how_far("added all new jobs and updated", updated, "existing job", begun=True):
        for chunk in _chunks(iter(jobs)):
            for _ in _split_to_fit(transport, chunk, updated, adding):
                pass


def _chunks(stream: Iterator[Job]) -> Iterator[list[Job]]:
    while chunk := list(islice(stream, MOST_JOBS)):
        yield chunk


def _add_and_publish(
    transport: Transport, adding: AddJobs, chunks: Iterable[list[Job]], ids: AddedIds, *, keep: bool
) -> list[Job]:
    """Add jobs to a staged insert and publish it; return copies of the jobs that are to be updated afterwards.

    Args:
        transport: Runs the calls.
        adding: The call that adds, with the staged insert, which is open, and removed if this fails.
        chunks: The jobs.
        ids: Where the ids are put.
        keep: Whether the jobs exist anyway, so that those of a failed insert can be freed of their ids.
    """
    added: list[Job] = []
    to_update: list[Job] = []
    publishing = False
    try:
        for chunk in chunks:
            for part in _split_to_fit(transport, chunk, ids, adding):
                added += part if keep else ()
                to_update += [replace(job, id=None) for job in part if ids.existing.get(job.id or 0) == "updated"]
        publishing = True
        _publish(transport, adding.staged_insert)
    except BaseException as err:
        for job in added:
            job.id = None
        _abandon(transport, adding.staged_insert)
        if isinstance(err, OutcomeUnknown) and not publishing:
            raise Unavailable(_NOTHING_ADDED.format(err.message)) from err
        raise
    return to_update


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


def _split_to_fit(transport: Transport, chunk: list[Job], ids: AddedIds, adding: AddJobs) -> Iterator[list[Job]]:
    """Add jobs, in several calls where one would be too large; gives the jobs of each call."""
    try:
        _add_chunk(transport, chunk, ids, adding)
    except TooLarge:
        if len(chunk) == 1:
            raise
        half = len(chunk) // 2
        yield from _split_to_fit(transport, chunk[:half], ids, adding)
        yield from _split_to_fit(transport, chunk[half:], ids, adding)
    else:
        yield chunk


def _add_chunk(transport: Transport, chunk: list[Job], ids: AddedIds, adding: AddJobs) -> None:
    """Run ``adding`` with these jobs, fill in their ids and append them to ``ids``, which has those before."""
    before = len(ids)
    places = adding.places[before : before + len(chunk)]
    if not places and before:
        places = list(range(before + 1, before + 1 + len(chunk)))
    call = replace(adding, jobs=chunk, places=places)
    _check_each(call)
    try:
        with _garbage_collection_paused():
            answer = transport.run(replace(call, jobs=_resolve_parents(call)))
    except TooLarge:
        raise
    except InvalidInput:
        for index, job in enumerate(chunk):
            job.check(call.called(index))  # the codec, which refuses wrong types, doesn't know the job and its field
        raise
    new_ids = _ids_of(answer, len(chunk))
    for job, job_id in zip(chunk, new_ids, strict=True):
        job.id = job_id
    ids += new_ids
    ids.existing.update(answer.existing)


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


def _check_each(call: AddJobs) -> None:
    """Check that what is given are jobs that can be added, each given once, and that their parents are lists.

    Raises:
        InvalidInput: Something else is given.
        Conflict: A job has an id or is given twice.
    """
    seen: set[int] = set()
    for index, job in enumerate(call.jobs):
        if type(job) is not Job:
            raise InvalidInput(f"only Job objects can be added, not {shortened(job)}")
        if id(job) in seen:
            raise Conflict(f"{call.called(index)} is given twice; each Job object can be added once")
        seen.add(id(job))
        if job.id is not None:
            raise Conflict(f"{call.called(index)} is added already, or was given before (id {job.id})")
        if type(job.parents) is not list and not isinstance(job.parents, (tuple, set, frozenset)):
            raise InvalidInput(f"{call.called(index)}: parents must be a list, not {shortened(job.parents)}")


def _resolve_parents(call: AddJobs) -> list[Job]:
    """Return the jobs with their parents as the call takes them: ids, or positions of earlier jobs in this chunk."""
    positions: dict[int, int] = {}
    resolved = []
    for position, job in enumerate(call.jobs):
        for document in _documents_of(astuple(job)):
            if document and holds_set(document):
                job.check(call.called(position))
        if job.parents:
            called = call.called(position)
            resolved.append(replace(job, parents=[_parent_reference(called, one, positions) for one in job.parents]))
        else:
            resolved.append(job)
        positions[id(job)] = position
    return resolved


_documents_of = itemgetter(*map(FIELDS.index, ("parameters", "data", "input_files", "stage_out_files")))


def _parent_reference(called: str, parent: Job | int, positions: dict[int, int]) -> int:
    if isinstance(parent, Job):
        if parent.id is not None:
            return parent.id
        if id(parent) in positions:
            return -(positions[id(parent)] + 1)
        raise InvalidInput(
            f"{called}: its parent, {title('job', parent.name)}, is not added yet; add it before or in the same list"
        )
    if type(parent) is not int or not 0 < parent < 2**63:
        raise InvalidInput(f"{called}: a parent is a Job or a job's id, not {shortened(parent)}")
    return parent


def _parents_first(jobs: Sequence[Job]) -> Sequence[Job]:
    """Return the jobs with every parent before its children, otherwise in the given order.

    Raises:
        InvalidInput: The jobs depend on each other in a circle.
    """
    if not any(job.parents for job in jobs):
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
