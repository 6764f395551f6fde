"""Changing many jobs in slices: what ``kill``, ``retry`` and ``rm`` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from balsam_core.client.slices import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balsam_core.cli.command import Session
    from balsam_core.cli.output import Printer
    from balsam_core.model.calls import Call, Changed


def change_jobs(
    session: Session, words: Sequence[str], verb: str, call: Callable[..., Call[Changed]], *, why_none: str, rest: str
) -> None:
    """Change the jobs that selectors choose, and print which of them changed.

    ``call`` makes the call for the jobs that meet a condition, its argument ``where``.
    """
    from balsam_core.cli.selectors import choose, parse
    from balsam_core.client.slices import changes, told_how_far

    selection = parse(words)
    ids: list[int] = []
    held = 0
    with session.open_db() as db, told_how_far(verb, ids, rest=rest):
        for condition in choose(db, selection).conditions:
            for changed in changes(db, call(where=condition)):
                ids += changed.ids
                held += changed.held
    report_changed(session.printer(), verb, ids, why_none=why_none)
    if held:
        click.echo(
            f"Warning: {counted(held, 'job')} not {verb}: launchers have not yet said that their processes have ended; "
            f"repeat this in a moment",
            err=True,
        )


def report_changed(printer: Printer, verb: str, ids: list[int], *, why_none: str) -> None:
    """Print which jobs were ``killed``, ``removed`` or the like, for people also why there may be none."""
    ids = sorted(ids)
    text = f"{verb} {counted(len(ids), 'job')}" if ids else f"{verb} no job: {why_none}"
    printer.one({verb: len(ids), "ids": ids}, text, ids=ids, done=text)
