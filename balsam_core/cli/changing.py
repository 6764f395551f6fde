"""Changing many jobs in slices: what ``kill``, ``retry`` and ``rm`` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.cli.output import Printer
    from balsam_core.cli.selectors import Chosen
    from balsam_core.client.database import Database
    from balsam_core.model.calls import Call, Changed
    from balsam_core.model.filters import Condition

__all__ = ["change", "jobs_in_words", "report"]


def change(db: Database, chosen: Chosen, call: Callable[[Condition], Call[Changed]]) -> list[int]:
    """Run a change on all chosen jobs, slice by slice, and return the ids of those that changed."""
    ids: list[int] = []
    for condition in chosen.conditions:
        more = True
        while more:
            changed = db.run(call(condition))
            ids += changed.ids
            more = changed.more
    return ids


def jobs_in_words(number: int) -> str:
    """Return ``1 job`` or ``5 jobs``."""
    return "1 job" if number == 1 else f"{number} jobs"


def report(printer: Printer, verb: str, ids: list[int], why_none: str) -> None:
    """Say which jobs changed.

    Args:
        printer: Where to.
        verb: What was done, e.g. ``killed``.
        ids: The jobs.
        why_none: Why there may be none, for people.
    """
    ids = sorted(ids)
    text = f"{verb} {jobs_in_words(len(ids))}" if ids else f"{verb} no job: {why_none}"
    printer.one({verb: len(ids), "ids": ids}, text, ident=ids)
