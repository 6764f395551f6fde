"""Changes of many jobs, made in slices so that none stalls other writers."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

from msgspec.structs import replace

from balsam_core.errors import BalsamError, OutcomeUnknown, PartlyDone
from balsam_core.model.calls import MOST_JOBS, GetEdges, RemoveJobs, RetryJobs
from balsam_core.model.filters import Compare

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Sized

    from balsam_core.model.calls import Call, Changed, RemovedJob

R = TypeVar("R")

PAUSE = 0.1  # seconds between slices: writers of an SQLite file, who look for it now and then, come in
REMOVED_AT_ONCE = 500  # jobs
REPEAT = "repeat it for the rest"
RETRY_REST = "for the rest, retry the jobs that are still FAILED or PARENT_KILLED"


class Runner(Protocol):
    """What runs calls: a transport or a database."""

    def run(self, call: Call[R], /) -> R:
        """Run a call."""


def changes(runner: Runner, call: Call[Changed]) -> Iterator[Changed]:
    """Run a call until no job is left to change; give the answer of each slice."""
    while True:
        changed = runner.run(call)
        yield changed
        if not changed.more:
            return
        if isinstance(call, RetryJobs):
            call = replace(call, last_root=changed.last_root, rest=changed.rest)
        time.sleep(PAUSE)


def removed_jobs(runner: Runner, call: RemoveJobs) -> Iterator[list[RemovedJob]]:
    """Remove jobs until none is left; give those of each slice."""
    while True:
        removed = runner.run(call)
        yield removed
        if len(removed) < call.limit:
            return
        time.sleep(PAUSE)


def removed_with_descendants(runner: Runner, ids: Sequence[int]) -> Iterator[list[RemovedJob]]:
    """Remove jobs and all that depend on them, each before its parents; give those of each slice."""
    from graphlib import TopologicalSorter

    children: dict[int, list[int]] = {job: [] for job in ids}
    generation = list(ids)
    while generation:
        found: set[int] = set()
        for at in range(0, len(generation), MOST_JOBS):
            for edge in runner.run(GetEdges(jobs=generation[at : at + MOST_JOBS], children_of=True)):
                children[edge.parent].append(edge.child)
                found.add(edge.child)
        generation = sorted(found - children.keys())
        children.update((job, []) for job in generation)
    order = list(TopologicalSorter(children).static_order())
    for at in range(0, len(order), REMOVED_AT_ONCE):
        yield runner.run(RemoveJobs(where=Compare("id", "in", order[at : at + REMOVED_AT_ONCE]), limit=REMOVED_AT_ONCE))
        time.sleep(PAUSE)


@contextlib.contextmanager
def told_how_far(verb: str, done: Sized, what: str = "job", rest: str = REPEAT) -> Iterator[None]:
    """Let an error after the first slice say what was done before; of Ctrl-C a note does.

    Args:
        verb: What is done, e.g. ``killed``.
        done: What was done; the block fills it.
        what: What it is, in the singular.
        rest: What to do for the rest.

    Raises:
        PartlyDone: The block failed after something was done.
    """
    try:
        yield
    except (BalsamError, KeyboardInterrupt) as err:
        if not done:
            raise
        least = "at least " if isinstance(err, OutcomeUnknown) else ""
        count = f"{verb} {least}{counted(len(done), what)}"
        if isinstance(err, KeyboardInterrupt):
            err.add_note(f"{count} before it was interrupted; {rest}")
            raise
        raise PartlyDone(f"{count}, then it failed: {err.message}; {rest}") from err


def counted(count: int, what: str) -> str:
    """Return a number of things in words, e.g. ``1 job`` or ``5 jobs``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
