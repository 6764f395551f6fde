"""``balsam ls``: list jobs, apps and workflows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from balsam_core.cli.command import Session, command, pass_session
from balsam_core.cli.values import AT_LEAST_0, states

if TYPE_CHECKING:
    from balsam_core.cli.output import Printer
    from balsam_core.client.database import Database

DEFAULT_LIMIT = 100  # jobs in a table


@command(
    examples=[
        "balsam ls",
        "balsam ls --state FAILED,RUN_TIMEOUT --wf scan",
        "balsam ls --by-states",
        "balsam ls -F id,name,parameters,return_code --id 12-20",
        "balsam ls --root-failures",
        "balsam ls --root-failures -o ids | balsam retry -",
    ]
)
@click.argument("what", type=click.Choice(["jobs", "apps", "wf"]), default="jobs", required=False)
@click.option("--name", metavar="TEXT", help="Only those whose name holds this text.")
@click.option("--id", "selectors", multiple=True, metavar="SELECTOR", help="Only these jobs: 12, 12-20, 1,3, last, -.")
@click.option("--state", multiple=True, metavar="STATE", help="Only jobs in this state, or these: A,B.")
@click.option("--wf", "--workflow", "workflow", metavar="NAME", help="Only jobs of this workflow.")
@click.option("--app", "--application", "app", metavar="NAME", help="Only jobs of this app.")
@click.option("--history", is_flag=True, help="Show the states that each job went through, with their times.")
@click.option("--by-states", is_flag=True, help="Show how many jobs are in each state.")
@click.option(
    "--root-failures",
    is_flag=True,
    help="Only jobs that failed by themselves, with the number of jobs that failed because of each.",
)
@click.option(
    "--limit",
    type=AT_LEAST_0,
    help=f"The newest so many jobs; 0 for all.  [default: {DEFAULT_LIMIT} in a table, else all]",
)
@click.option("-F", "--fields", metavar="NAMES", help="Which fields, separated by commas; 'all' for all.")
@pass_session
def ls(session: Session, /, what: str, fields: str | None, limit: int | None, **options: Any) -> None:  # noqa: ANN401
    """List jobs, apps or workflows.

    A table shows the newest 100 jobs and says when there are more; the other formats give all jobs. Besides the fields
    of a job there are 'runs' (its app or command) and 'workdir'. A job that failed because of its parents is counted by
    --root-failures once, for the first of them.
    """
    printer = session.printer()
    history, by_states, roots = options["history"], options["by_states"], options["root_failures"]
    if what == "apps":
        _refuse_job_options({"limit": limit, **options})
        with session.open_db() as db:
            _list_apps(db, printer, options["name"] or "", fields)
        return
    if history and (by_states or what == "wf" or fields is not None):
        raise click.UsageError("--history lists states of jobs: it goes neither with --by-states, --fields nor with wf")
    if roots and (history or by_states or what == "wf" or fields is not None or options["state"]):
        raise click.UsageError(
            "--root-failures goes neither with --state, --history, --by-states, --fields nor with wf"
        )
    if (by_states or what == "wf") and (fields is not None or limit is not None):
        raise click.UsageError("--fields and --limit go with a list of jobs only")
    wanted = states("--state", options["state"])
    with session.open_db() as db:
        from balsam_core.cli import listing

        if limit is None:
            limit = DEFAULT_LIMIT if printer.for_people else 0
        conditions = listing.conditions(db, options, wanted)
        if roots:
            listing.list_root_failures(db, printer, conditions, limit)
            return
        found = listing.FoundJobs(db, conditions, limit)
        if by_states or what == "wf":
            listing.list_counts(db, printer, found, by_workflow=what == "wf", by_states=by_states)
        elif history:
            listing.list_history(db, printer, found)
        else:
            listing.list_jobs(db, printer, found, fields)
        if found.more:
            printer.note(f"... showing the newest {limit}; there are more: --limit 0 for all, --by-states for a count")


def _refuse_job_options(options: dict[str, Any]) -> None:
    names = {"selectors": "id", "workflow": "wf"}
    for name, value in options.items():
        if name != "name" and value is not None and value is not False and value != ():
            raise click.UsageError(f"--{names.get(name, name).replace('_', '-')} does not go with 'ls apps'")


def _list_apps(db: Database, printer: Printer, text: str, fields: str | None) -> None:
    from balsam_core.cli.records import field_names
    from balsam_core.model.app import App

    known = App.__struct_fields__
    names = known if fields is None else field_names(fields, known)
    if printer.for_people and fields is None:
        names = ["name", "executable", "description"]
    if printer.format == "ids":
        names = ["name"]
    rows = ([getattr(app, name) for name in names] for app in db.apps if text in app.name)
    printer.rows(names, rows, empty="There are no such apps." if text else "There are no apps yet: see balsam app.")
