"""Changes of many jobs, made in slices so that none stalls other writers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol, TypeVar

from msgspec.structs import replace

from balsam_core.errors import BalsamError, OutcomeUnknown, PartlyDone
from balsam_core.model.calls import MOST_JOBS, GetEdges, RemoveJobs, RetryJobs
from balsam_core.model.filters import Compare

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Sized

    from balsam_core.model.calls import Call, Changed, RemovedJob

R = TypeVar("R")


class Runner(Protocol):
    """What runs calls: a transport or a database."""

    def run(self, call: Call[R], /) -> R:
        """Run a call."""


def changed_ids(runner: Runner, call: Call[Changed]) -> Iterator[list[int]]:
    """Run a call until no job is left to change; give the ids of each slice."""
    more = True
    while more:
        changed = runner.run(call)
        yield changed.ids
        more = changed.more
        if isinstance(call, RetryJobs):
            call = replace(call, after=changed.rest)


def removed_jobs(runner: Runner, call: RemoveJobs) -> Iterator[list[RemovedJob]]:
    """Remove jobs until none is left; give those of each slice."""
    more = True
    while more:
        removed = runner.run(call)
        yield removed
        more = len(removed) == call.limit


def removed_with_descendants(runner: Runner, ids: Sequence[int]) -> Iterator[list[RemovedJob]]:
    """Remove jobs and all that depend on them, each before its parents; give those of each slice."""
    from graphlib import TopologicalSorter

    before: dict[int, list[int]] = {job: [] for job in ids}
    generation = list(ids)
    while generation:
        found: set[int] = set()
        for at in range(0, len(generation), MOST_JOBS):
            for edge in runner.run(GetEdges(jobs=generation[at : at + MOST_JOBS], children_of=True)):
                before[edge.parent].append(edge.child)
                found.add(edge.child)
        generation = sorted(found - before.keys())
        before.update((job, []) for job in generation)
    order = list(TopologicalSorter(before).static_order())
    for at in range(0, len(order), MOST_JOBS):
        yield from removed_jobs(runner, RemoveJobs(where=Compare("id", "in", order[at : at + MOST_JOBS])))


@contextlib.contextmanager
def told_how_far(verb: str, done: Sized, what: str = "job") -> Iterator[None]:
    """Let an error after the first slice say what was done before.

    Args:
        verb: What is done, e.g. ``killed``.
        done: What was done; the block fills it.
        what: What it is, in the singular.

    Raises:
        PartlyDone: The block failed after something was done.
    """
    try:
        yield
    except BalsamError as err:
        if not done:
            raise
        least = "at least " if isinstance(err, OutcomeUnknown) else ""
        count = f"{verb} {least}{len(done)} {what}{'' if len(done) == 1 else 's'}"
        raise PartlyDone(f"{count}, then it failed: {err.message}; repeat it for the rest") from err
