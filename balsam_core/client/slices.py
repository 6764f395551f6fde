"""Changes of many jobs, made in slices so that none stalls other writers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from balsam_core.errors import BalsamError, OutcomeUnknown, PartlyDone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sized

    from balsam_core.model.calls import Call, Changed, RemovedJob, RemoveJobs


def changed_ids(run: Callable[[Call[Changed]], Changed], call: Call[Changed]) -> Iterator[list[int]]:
    """Run a call until no job is left to change; give the ids of each slice."""
    more = True
    while more:
        changed = run(call)
        yield changed.ids
        more = changed.more


def removed_jobs(
    run: Callable[[Call[list[RemovedJob]]], list[RemovedJob]], call: RemoveJobs
) -> Iterator[list[RemovedJob]]:
    """Remove jobs until none is left; give those of each slice."""
    more = True
    while more:
        removed = run(call)
        yield removed
        more = len(removed) == call.limit


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
