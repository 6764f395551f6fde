"""``balsam run -- CMD``: add a job without defining an app."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath
from typing import Any

import click

from balsam_core.cli.command import Session, command, pass_session
from balsam_core.cli.job_options import add_job, job_options


@command(
    context_settings={"allow_interspersed_args": False},
    examples=[
        "balsam run -- echo hello",
        "balsam run --name relax --wf scan --num-nodes 2 -- sim.x --steps 100 input.xyz",
    ],
)
@job_options
@click.argument("words", metavar="-- CMD [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_session
def run(session: Session, /, words: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401  (one for each option)
    """Add a job that runs a command line, and print its id.

    A launcher runs it: start one with 'balsam launcher --consume-all'. The name is the program's unless another is
    given. The words are taken as they are; no shell sees them.
    """
    if options["name"] is None:
        options["name"] = PurePosixPath(words[0]).name
    if job_id := add_job(session, {"command": shlex.join(words), **options}):
        session.printer().note(f"Added job {job_id}; 'balsam launcher --consume-all' runs it.")
