"""Changing many jobs in slices: what ``kill``, ``retry`` and ``rm`` share."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from balsam_core.client.slices import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from balsam_core.cli.command import Session
    from balsam_core.cli.output import Printer
    from balsam_core.client.database import Database
    from balsam_core.model.calls import Call, Changed
    from balsam_core.model.states import State


def change_jobs(
    session: Session,
    words: Sequence[str],
    verb: str,
    call: Callable[..., Call[Changed]],
    *,
    changeable: Collection[State],
    why_none: str,
    rest: str,
) -> None:
    """Change the jobs that selectors choose, and print which of them changed, and which did not and why.

    Args:
        session: The invocation.
        words: The selectors.
        verb: What is done, e.g. ``killed``.
        call: Makes the call for the jobs that meet a condition, its argument ``where``.
        changeable: The states in which jobs can be changed.
        why_none: What is said of jobs in other states, if there are no others.
        rest: What to do after an error for the rest.

    Raises:
        Conflict: No job was changed; one could be, but for a launcher or a parent.
    """
    from balsam_core.cli.selectors import choose, parse
    from balsam_core.client.slices import changes, told_how_far
    from balsam_core.errors import Conflict
    from balsam_core.model.calls import CountStates

    selection = parse(words)
    ids: list[int] = []
    others: Counter[str] = Counter()
    held = blocked = 0
    why = ""
    with session.open_db() as db, told_how_far(verb, ids, rest=rest):
        free_of_dead_launchers(db, session.printer())
        for condition in choose(db, selection).conditions:
            others.update(db.run(CountStates(where=condition)).get("", {}))
            for changed in changes(db, call(where=condition)):
                ids += changed.ids
                held, blocked = held + changed.held, blocked + changed.blocked
                why = why or changed.why
    if why and not ids:
        raise Conflict(why)
    left = {state: count for state, count in sorted(others.items()) if state not in changeable}
    states = ", ".join(f"{count} {state}" for state, count in left.items())
    printer = session.printer()
    report_changed(printer, verb, ids, why_none=f"{why_none} ({states})" if states else "nothing was chosen")
    if ids and states:
        printer.note(f"Not {verb}, since {why_none}: {states}.")
    if held or blocked:
        causes = [f"{held} that launchers still hold"] if held else []
        causes += [f"{blocked} behind a failed or killed parent"] if blocked else []
        click.echo(f"Warning: {counted(held + blocked, 'job')} not {verb}, {' and '.join(causes)}: {why}", err=True)


def free_of_dead_launchers(db: Database, printer: Printer) -> None:
    """Let dead launchers give their jobs back first, and say so: else these could not be changed.

    Raises:
        BalsamError: The database can't be reached, or refuses.
    """
    for closed in db.end_dead_launchers():
        jobs = f"; it has given {counted(closed.launcher.jobs, 'job')} back" if closed.launcher.jobs else ""
        printer.note(f"{closed.why[0].upper()}{closed.why[1:]}{jobs}.")


def report_changed(printer: Printer, verb: str, ids: list[int], *, why_none: str) -> None:
    """Print which jobs were ``killed``, ``removed`` or the like, for people also why there may be none."""
    ids = sorted(ids)
    text = f"{verb} {counted(len(ids), 'job')}" if ids else f"{verb} no job: {why_none}"
    printer.one({verb: len(ids), "ids": ids}, text, ids=ids, done=text)
