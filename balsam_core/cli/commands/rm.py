"""``balsam rm``: remove jobs or apps."""

from __future__ import annotations

import sys
from itertools import chain
from typing import TYPE_CHECKING

import click

from balsam_core.cli import selectors
from balsam_core.cli.command import Session, command, pass_session

if TYPE_CHECKING:
    from balsam_core.cli.output import Printer
    from balsam_core.client.database import Database


@command(
    epilog=selectors.HELP,
    examples=["balsam rm 12", "balsam rm wf:test --files --yes", "balsam rm 7 --cascade", "balsam rm apps sim"],
)
@click.argument("selector", metavar="[jobs] SELECTOR... | apps NAME...", nargs=-1, required=True)
@click.option("--files", is_flag=True, help="Remove the working directories in data/, too.")
@click.option("--cascade", is_flag=True, help="Remove all jobs that depend on them, too.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@pass_session
def rm(session: Session, selector: tuple[str, ...], files: bool, cascade: bool, yes: bool) -> None:
    """Remove jobs or apps.

    Jobs that run, or that others need which have not finished, are not removed; neither are apps that jobs use. Working
    directories stay unless --files is given; directories of your own (--user-workdir) always stay.
    """
    printer = session.printer()
    kind, words = (selector[0], selector[1:]) if selector[0] in {"apps", "jobs"} else ("jobs", selector)
    if not words:
        raise click.UsageError(f"'rm {kind}' names nothing to remove")
    if not yes and ("-" in words or not sys.stdin.isatty()):
        raise click.UsageError("rm asks before it removes anything, and here nobody can answer: give --yes")
    if kind == "apps":
        if files or cascade:
            raise click.UsageError("--files and --cascade go with jobs only")
        with session.open_db() as db:
            _remove_apps(db, printer, words, yes=yes)
        return
    selection = selectors.parse(words)
    with session.open_db() as db:
        _remove_jobs(db, printer, selectors.choose(db, selection), files=files, cascade=cascade, yes=yes)


def _remove_apps(db: Database, printer: Printer, names: tuple[str, ...], *, yes: bool) -> None:
    from balsam_core.client.slices import counted, told_how_far
    from balsam_core.model.calls import GetApps

    unique = list(dict.fromkeys(names))
    db.run(GetApps(names=unique))  # raises where one does not exist, before any is removed
    if yes or _confirm_removal(
        f"Remove {'the app' if len(unique) == 1 else 'the apps'} {', '.join(map(repr, unique))}?"
    ):
        removed: list[str] = []
        with told_how_far("removed", removed, "app"):
            for name in unique:
                db.apps.remove(name)
                removed.append(name)
        printer.one({"removed": len(unique), "names": unique}, f"removed {counted(len(unique), 'app')}", ids=unique)


def _remove_jobs(
    db: Database, printer: Printer, chosen: selectors.Chosen, *, files: bool, cascade: bool, yes: bool
) -> None:
    from balsam_core.cli.changing import free_of_dead_launchers, report_changed
    from balsam_core.client.slices import counted, removed_jobs, removed_with_descendants, told_how_far
    from balsam_core.dbdir.workdirs import remove_workdirs
    from balsam_core.model.calls import RemoveJobs

    free_of_dead_launchers(db, printer)
    if not yes:
        count = chosen.count()
        more = ", all that depend on them" if cascade else ""
        more += " with their files" if files else ""
        if count and not _confirm_removal(f"Remove {counted(count, 'job')}{more} from {db.path}?"):
            return
    if cascade:
        slices = removed_with_descendants(db, chosen.ids())
    else:  # the last condition first: children have higher ids than their parents, mostly
        calls = [RemoveJobs(where=condition) for condition in reversed(chosen.conditions)]
        slices = chain.from_iterable(removed_jobs(db, call) for call in calls)
    ids: list[int] = []
    kept: list[str] = []
    with told_how_far("removed", ids):
        for removed in slices:
            ids += [job.id for job in removed]
            if files:
                # After the jobs: an interruption here leaves a directory without a job, never the reverse.
                kept += remove_workdirs(db.directory, removed)
    report_changed(printer, "removed", ids, why_none="nothing was chosen")
    for fault in kept:
        printer.note(f"Warning: {fault}")


def _confirm_removal(question: str) -> bool:
    if not click.confirm(question, err=True):
        click.echo("nothing was removed", err=True)
        return False
    return True
