"""Changing many jobs in slices: what ``kill``, ``retry`` and ``rm`` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from balsam_core.client.slices import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balsam_core.cli.command import Session
    from balsam_core.cli.output import Printer
    from balsam_core.client.database import Database
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
        free_of_dead_launchers(db, session.printer())
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


def free_of_dead_launchers(db: Database, printer: Printer) -> None:
    """Let dead launchers give their jobs back first, and say so: else these could not be changed.

    Raises:
        BalsamError: The database can't be reached, or refuses.
    """
    from balsam_core.client.dead_launchers import PATIENCE, end_dead_launchers

    for closed in end_dead_launchers(db.directory, db.run, patience=PATIENCE):
        jobs = f"; it has given {counted(closed.launcher.jobs, 'job')} back" if closed.launcher.jobs else ""
        printer.note(f"{closed.why[0].upper()}{closed.why[1:]}{jobs}.")


def report_changed(printer: Printer, verb: str, ids: list[int], *, why_none: str) -> None:
    """Print which jobs were ``killed``, ``removed`` or the like, for people also why there may be none."""
    ids = sorted(ids)
    text = f"{verb} {counted(len(ids), 'job')}" if ids else f"{verb} no job: {why_none}"
    printer.one({verb: len(ids), "ids": ids}, text, ids=ids)
