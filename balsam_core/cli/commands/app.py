"""``balsam app``: define an app."""

from __future__ import annotations

from typing import Any

import click

from balsam_core.cli.command import Session, command, pass_session
from balsam_core.cli.values import converted, mapping


@command(examples=["balsam app --name sim --executable 'sim.x --x {x}'", "balsam job --app sim -p x=0.5"])
@click.option("--name", required=True, help="Unique name in this DB.")
@click.option(
    "--executable",
    required=True,
    metavar="COMMAND",
    help="The command line; each {KEY} is filled from a job's parameters.",
)
@click.option("--description", default="", help="Free text.")
@click.option("--preprocess", default="", metavar="COMMAND", help="Command to run before each job.")
@click.option("--postprocess", default="", metavar="COMMAND", help="Command to run after each job.")
@click.option(
    "--env",
    "environ",
    multiple=True,
    metavar="KEY=VALUE",
    callback=converted(mapping),
    help="Environment variable of each job. May be repeated.",
)
@click.option("--replace", is_flag=True, help="Redefine the app of this name; jobs that have not started use the new.")
@pass_session
def app(session: Session, /, *, replace: bool, **fields: Any) -> None:  # noqa: ANN401  (one for each option)
    """Define an app: a command that jobs run.

    The command line is split into words first and filled then, so that a parameter can't add words.
    'balsam ls apps' lists the apps, 'balsam rm apps NAME' removes one.
    """
    from balsam_core.cli.job_options import warn_of_operators
    from balsam_core.model.app import App

    new = App(**fields)
    warn_of_operators({name: fields[name] for name in ("executable", "preprocess", "postprocess")}, filled=None)
    with session.open_db() as db:
        db.apps.add(new, replace=replace)
    record = {field: getattr(new, field) for field in App.__struct_fields__}
    text = f"app {new.name!r} is defined"
    session.printer().one(record, text, done=text)
