"""Changing many jobs in slices: what ``kill``, ``retry`` and ``rm`` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balsam_core.cli.command import Session
    from balsam_core.cli.output import Printer
    from balsam_core.model.calls import Call, Changed


def change_jobs(
    session: Session, words: Sequence[str], verb: str, call: Callable[..., Call[Changed]], *, why_none: str
) -> None:
    """Change the jobs that selectors choose, and print which of them changed.

    ``call`` makes the call for the jobs that meet a condition, its argument ``where``.
    """
    from balsam_core.cli.selectors import choose, parse
    from balsam_core.client.slices import changed_ids, told_how_far

    selection = parse(words)
    ids: list[int] = []
    with session.open_db() as db, told_how_far(verb, ids):
        for condition in choose(db, selection).conditions:
            for some in changed_ids(db, call(where=condition)):
                ids += some
    report_changed(session.printer(), verb, ids, why_none=why_none)


def report_changed(printer: Printer, verb: str, ids: list[int], *, why_none: str) -> None:
    """Print which jobs were ``killed``, ``removed`` or the like, for people also why there may be none."""
    ids = sorted(ids)
    text = f"{verb} {count_text(len(ids))}" if ids else f"{verb} no job: {why_none}"
    printer.one({verb: len(ids), "ids": ids}, text, ids=ids)


def count_text(count: int) -> str:
    """Return ``1 job`` or ``5 jobs``."""
    return "1 job" if count == 1 else f"{count} jobs"
