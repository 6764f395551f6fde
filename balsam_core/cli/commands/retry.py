"""``balsam retry``: start failed or killed jobs again."""

from __future__ import annotations

import click

from balsam_core.cli import selectors
from balsam_core.cli.command import Session, command, pass_session


@command(epilog=selectors.HELP, examples=["balsam retry 12", "balsam ls --state FAILED -o ids | balsam retry -"])
@click.argument("selector", nargs=-1, required=True)
@pass_session
def retry(session: Session, selector: tuple[str, ...]) -> None:
    """Start failed or killed jobs again.

    Jobs that ended only because of them start again, too. Other jobs stay as they are, as do a killed job while its
    launcher has not ended it, and a job behind a failed or killed parent that is not chosen. Many jobs are started in
    slices; an error on the way says how many are started already.
    """
    from balsam_core.cli.changing import change_jobs
    from balsam_core.client.slices import RETRY_REST
    from balsam_core.model.calls import RetryJobs
    from balsam_core.model.states import UNSUCCESSFUL

    why = "they had not failed or been killed"
    change_jobs(session, selector, "retried", RetryJobs, changeable=UNSUCCESSFUL, why_none=why, rest=RETRY_REST)
