"""Changes of many jobs, made in slices so that none stalls other writers."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

from msgspec.structs import replace

from balsam_core.errors import BalsamError, Conflict, OutcomeUnknown, PartlyDone, Unavailable
from balsam_core.model.calls import MOST_JOBS, UNCHANGED, CheckRemoval, GetEdges, GetRows, RemoveJobs, RetryJobs
from balsam_core.model.filters import AllOf, Compare
from balsam_core.model.states import State
from balsam_core.model.text import still_needed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence, Sized

    from balsam_core.model.calls import Call, Changed, Edge, RemovedJob, Where

R = TypeVar("R")

PAUSE = 0.1  # seconds between slices: writers of an SQLite file, who look for it now and then, come in
REMOVED_AT_ONCE = 500  # jobs
MOST_NAMED = 10  # children in a message
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


def removed_jobs(runner: Runner, where: Where, *, cascade: str) -> Iterator[list[RemovedJob]]:
    """Remove jobs until none is left; give those of each slice.

    ``cascade`` is what a user writes to remove the jobs that depend on them, too.

    Raises:
        Conflict: A launcher holds a job, or another job that has not finished depends on one. Only one that has come
            to it after the first slice leaves others removed.
    """
    if edges := runner.run(CheckRemoval(where=where)):
        raise _needed(edges, cascade)
    call = RemoveJobs(where=where)
    while True:
        removed = runner.run(call)
        yield removed
        if len(removed) < call.limit:
            return
        time.sleep(PAUSE)


def removed_children_first(
    runner: Runner, ids: Sequence[int], *, cascade: str, descendants: bool
) -> Iterator[list[RemovedJob]]:
    """Remove jobs, each before its parents; give those of each slice. See :func:`removed_jobs`.

    ``descendants`` says whether all that depend on them are removed, too.
    """
    from graphlib import TopologicalSorter

    children: dict[int, list[int]] = {job: [] for job in ids}
    generation = list(ids)
    while generation:
        found: set[int] = set()
        for at in range(0, len(generation), MOST_JOBS):
            some = generation[at : at + MOST_JOBS]
            runner.run(CheckRemoval(where=Compare("id", "in", some), cascade=True))
            edges = runner.run(GetEdges(jobs=some, children_of=True))
            outside = {edge.child for edge in edges if edge.child not in children}
            if outside and not descendants:
                unfinished = _unfinished(runner, outside)
                if needed := [edge for edge in edges if edge.child in unfinished]:
                    raise _needed([edge for edge in needed if edge.parent == needed[0].parent], cascade)
                edges = [edge for edge in edges if edge.child not in outside]
            for edge in edges:
                children[edge.parent].append(edge.child)
                found.add(edge.child)
        generation = sorted(found - children.keys())
        children.update((job, []) for job in generation)
    order = list(TopologicalSorter(children).static_order())
    for at in range(0, len(order), REMOVED_AT_ONCE):
        if at:
            time.sleep(PAUSE)
        yield runner.run(RemoveJobs(where=Compare("id", "in", order[at : at + REMOVED_AT_ONCE]), limit=REMOVED_AT_ONCE))


def _unfinished(runner: Runner, ids: Collection[int]) -> set[int]:
    """Return those of the jobs that have not finished."""
    unfinished: set[int] = set()
    ordered = sorted(ids)
    for at in range(0, len(ordered), MOST_JOBS):
        where = AllOf([Compare("id", "in", ordered[at : at + MOST_JOBS]), Compare("state", "ne", State.JOB_FINISHED)])
        unfinished.update(row[0] for row in runner.run(GetRows(fields=["id"], where=where)))
    return unfinished


def _needed(edges: Sequence[Edge], cascade: str) -> Conflict:
    children = [edge.child for edge in edges[:MOST_NAMED]]
    return Conflict(f"{still_needed(edges[0].parent, children)}: remove them with it ({cascade})")


@contextlib.contextmanager
def told_how_far(
    verb: str, done: Sized, what: str = "job", *, rest: str = REPEAT, begun: bool = False
) -> Iterator[None]:
    """Let an error after the first slice say what was done before; of Ctrl-C a note does.

    Args:
        verb: What is done, e.g. ``killed``.
        done: What was done; the block fills it.
        what: What it is, in the singular.
        rest: What to do for the rest, where the same can be tried again.
        begun: Whether something, which ``verb`` says, was done before the block.

    Raises:
        PartlyDone: The block failed after something was done.
    """
    try:
        yield
    except (BalsamError, KeyboardInterrupt) as err:
        if not done and not begun:
            raise
        least = "at least " if isinstance(err, OutcomeUnknown) else ""
        count = f"{verb} {least}{counted(len(done), what)}"
        if isinstance(err, KeyboardInterrupt):
            err.add_note(f"{count} before it was interrupted; {rest}")
            raise
        then = f"; {rest}" if isinstance(err, (Unavailable, OutcomeUnknown)) else ""
        raise PartlyDone(f"{count}, then it failed: {err.message.removesuffix('; ' + UNCHANGED)}{then}") from err


def counted(count: int, what: str) -> str:
    """Return a number of things in words, e.g. ``1 job`` or ``5 jobs``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
