"""``balsam rm``: remove jobs or apps."""

from __future__ import annotations

import sys
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

    Nothing is removed if a job runs, or is needed by others which have not finished; neither are apps that jobs use.
    Many jobs are removed in slices: an error on the way says how many are gone, and the others stay. Working
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
        text = f"removed {counted(len(unique), 'app')}"
        printer.one({"removed": len(unique), "names": unique}, text, ids=unique, done=text)


def _remove_jobs(
    db: Database, printer: Printer, chosen: selectors.Chosen, *, files: bool, cascade: bool, yes: bool
) -> None:
    from balsam_core.cli.changing import free_of_dead_launchers, report_changed
    from balsam_core.client.slices import counted, removed_children_first, removed_jobs, told_how_far
    from balsam_core.dbdir.workdirs import remove_workdirs

    free_of_dead_launchers(db, printer)
    if not yes:
        count = chosen.count()
        more = ", all that depend on them" if cascade else ""
        more += " with their files" if files else ""
        if count and not _confirm_removal(f"Remove {counted(count, 'job')}{more} from {db.path}?"):
            return
    if cascade or len(chosen.conditions) != 1:
        slices = removed_children_first(db, chosen.ids(), cascade="--cascade", descendants=cascade)
    else:
        slices = removed_jobs(db, chosen.conditions[0], cascade="--cascade")
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
