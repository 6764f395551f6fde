"""Adding many jobs: in calls of bounded size, published at once. Knows calls, not databases."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, overload

from msgspec.structs import replace

from balsam_core.errors import BalsamError, Conflict, InvalidInput, TooLarge
from balsam_core.model.calls import (
    MOST_JOBS,
    AbandonStagedInsert,
    AddJobs,
    OpenStagedInsert,
    PromoteStagedInsert,
    PublishStagedInsert,
)
from balsam_core.model.job import Job

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from balsam_core.model.calls import Added
    from balsam_core.transport.base import Transport

__all__ = ["Ids", "insert"]


class Ids(Sequence[int]):
    """Ids of added jobs in the order of adding, stored as ranges: a million take no more room than one."""

    def __init__(self) -> None:
        self._ranges: list[range] = []
        self._length = 0

    def append(self, first: int, count: int = 1) -> None:
        """Add ``count`` ids from ``first`` on."""
        if not count:
            return
        self._length += count
        if self._ranges and self._ranges[-1].stop == first:
            self._ranges[-1] = range(self._ranges[-1].start, first + count)
        else:
            self._ranges.append(range(first, first + count))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._ranges)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        place = index + self._length if index < 0 else index
        if 0 <= place < self._length:
            for ids in self._ranges:
                if place < len(ids):
                    return ids[place]
                place -= len(ids)
        msg = f"index {index} is out of range: there are {self._length} ids"
        raise IndexError(msg)

    def __repr__(self) -> str:
        return f"Ids({', '.join(f'{r.start}-{r.stop - 1}' if len(r) > 1 else str(r.start) for r in self._ranges)})"


def insert(transport: Transport, jobs: Iterable[Job]) -> Ids:
    """Add jobs, all of them or none; their ``id`` is filled in. A sequence may name parents in any order.

    An iterator is read as it goes, so that memory stays flat; there a parent must come before its children.
    """
    ordered = _parents_first(jobs) if isinstance(jobs, Sequence) else jobs
    stream = iter(ordered)
    chunk = list(islice(stream, MOST_JOBS))
    ids = Ids()
    if not chunk:
        return ids
    rest = list(islice(stream, 1))
    if not rest:
        try:
            _add(transport, chunk, ids, staged_insert=0)
        except TooLarge:
            if len(chunk) == 1:
                raise
        else:
            return ids
    staged_insert = transport.run(OpenStagedInsert())
    done: list[Job] = []
    try:
        stream = chain(rest, stream)
        while chunk:
            for added in _add_halving(transport, chunk, ids, staged_insert=staged_insert):
                if isinstance(ordered, Sequence):
                    done += added
            chunk = list(islice(stream, MOST_JOBS))
        transport.run(PublishStagedInsert(staged_insert=staged_insert))
    except BaseException:
        for job in done:
            job.id = None
        _abandon(transport, staged_insert)
        raise
    while transport.run(PromoteStagedInsert(staged_insert=staged_insert)):
        pass
    return ids


def _abandon(transport: Transport, staged_insert: int) -> None:
    """Remove what an unpublished staged insert holds; what can't be removed now is pruned later and never visible."""
    try:
        while transport.run(AbandonStagedInsert(staged_insert=staged_insert)):
            pass
    except BalsamError:
        import logging

        logging.getLogger(__name__).debug("staged insert %s is left to be pruned", staged_insert, exc_info=True)


def _add_halving(transport: Transport, chunk: list[Job], ids: Ids, *, staged_insert: int) -> Iterator[list[Job]]:
    """Add jobs to a staged insert, in several calls where one would be too large; gives those that were added."""
    try:
        _add(transport, chunk, ids, staged_insert=staged_insert)
    except TooLarge:
        if len(chunk) == 1:
            raise
        half = len(chunk) // 2
        yield from _add_halving(transport, chunk[:half], ids, staged_insert=staged_insert)
        yield from _add_halving(transport, chunk[half:], ids, staged_insert=staged_insert)
    else:
        yield chunk


def _add(transport: Transport, chunk: list[Job], ids: Ids, *, staged_insert: int) -> None:
    with _no_collection():
        answer = transport.run(AddJobs(jobs=_with_parent_ids(chunk), staged_insert=staged_insert))
    for job, number in zip(chunk, _numbers(answer, len(chunk)), strict=True):
        job.id = number
        ids.append(number)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for garbage while a call is made of thousands of objects, which are none of it.

    It would look through the whole program for every few thousand jobs, a quarter of the time of adding them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _numbers(answer: Added, count: int) -> Iterator[int]:
    following = answer.first
    existing = answer.existing
    for position in range(count):
        if position in existing:
            yield existing[position]
        else:
            yield following
            following += 1


def _with_parent_ids(chunk: list[Job]) -> list[Job]:
    """Return the jobs with parents as the call wants them: ids, or positions of earlier jobs in this chunk."""
    places: dict[int, int] = {}
    ready = []
    for place, job in enumerate(chunk):
        if type(job) is not Job:
            msg = f"only Job objects can be added, not {job!r}"
            raise InvalidInput(msg)
        if job.id is not None or id(job) in places:
            msg = f"job {job.name!r} is added already" + (f" (id {job.id})" if job.id is not None else " in this call")
            raise Conflict(msg)
        if job.parents:
            ready.append(replace(job, parents=[_parent_reference(job, parent, places) for parent in job.parents]))
        else:
            ready.append(job)
        places[id(job)] = place
    return ready


def _parent_reference(job: Job, parent: Job | int, places: dict[int, int]) -> int:
    if isinstance(parent, Job):
        if parent.id is not None:
            return parent.id
        if id(parent) in places:
            return -(places[id(parent)] + 1)
        msg = f"job {job.name!r}: its parent {parent.name!r} is not added yet; add it before or in the same list"
        raise InvalidInput(msg)
    if type(parent) is not int or parent < 1:
        msg = f"job {job.name!r}: a parent is a Job or a job's id, not {parent!r}"
        raise InvalidInput(msg)
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
    open_: dict[int, Job] = {}  # the path from a root to here: job -> children that led here, in order
    for root in jobs:
        stack = [(root, iter(root.parents))] if id(root) not in done else []
        if stack:
            open_[id(root)] = root
        while stack:
            job, parents = stack[-1]
            for parent in parents:
                if not isinstance(parent, Job) or id(parent) in done or id(parent) not in members:
                    continue
                if id(parent) in open_:
                    path = list(open_.values())
                    circle = [*path[path.index(open_[id(parent)]) :], parent]
                    names = " <- ".join(repr(member.name) for member in circle)
                    msg = f"these jobs depend on each other in a circle: {names}"
                    raise InvalidInput(msg)
                open_[id(parent)] = parent
                stack.append((parent, iter(parent.parents)))
                break
            else:
                stack.pop()
                del open_[id(job)]
                done.add(id(job))
                ordered.append(job)
    return ordered
