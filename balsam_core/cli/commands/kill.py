"""``balsam kill``: stop jobs for good."""

from __future__ import annotations

from functools import partial

import click

from balsam_core.cli import selectors
from balsam_core.cli.command import Session, command, pass_session


@command(
    epilog=selectors.HELP,
    examples=["balsam kill 12", "balsam kill wf:scan", "balsam ls --name relax -o ids | balsam kill -"],
)
@click.argument("selector", nargs=-1, required=True)
@click.option("-m", "--message", default="", metavar="TEXT", help="Why, for the jobs' history.")
@pass_session
def kill(session: Session, selector: tuple[str, ...], message: str) -> None:
    """Stop jobs for good, with those that wait for them.

    They become USER_KILLED, jobs that wait for them PARENT_KILLED; 'balsam retry' starts them again. Jobs that have
    ended stay as they are. Many jobs are killed in slices; an error on the way says how many are killed already.
    """
    from balsam_core.cli.changing import change_jobs
    from balsam_core.client.slices import REPEAT
    from balsam_core.model.calls import KillJobs
    from balsam_core.model.states import ACTIVE

    call = partial(KillJobs, message=message)
    change_jobs(session, selector, "killed", call, changeable=ACTIVE, why_none="they had ended", rest=REPEAT)
