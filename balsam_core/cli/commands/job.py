"""``balsam job``: add a job."""

from __future__ import annotations

from typing import Any

import click

from balsam_core.cli.command import Session, command, pass_session
from balsam_core.cli.job_options import add_job, job_options


@command(
    examples=[
        "balsam job --name relax-1 --workflow scan --app sim -p x=0.5 --ranks-per-node 4",
        "balsam job --name sum --workflow scan --command 'python sum.py' --parent 1-10 --input-files '*.out'",
    ]
)
@click.option("--app", "--application", metavar="NAME", help="The app to run; see 'balsam app'.")
@click.option("--args", metavar="WORDS", help="More words for the command line.")
@click.option("--command", metavar="COMMAND", help="A command line of its own, instead of an app.")
@job_options
@pass_session
def job(session: Session, /, **options: Any) -> None:  # noqa: ANN401  (one for each option)
    """Add a job and print its id.

    A job runs an app, or a command line of its own.
    """
    if bool(options["app"]) == bool(options["command"]):
        raise click.UsageError("a job runs either an app or a command: give one of --app and --command")
    add_job(session, options)
