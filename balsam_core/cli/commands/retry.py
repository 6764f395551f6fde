"""``balsam retry``: start failed or killed jobs again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from balsam_core.cli import selectors
from balsam_core.cli.command import command, pass_session

if TYPE_CHECKING:
    from balsam_core.cli.command import Session
    from balsam_core.model.filters import Condition

__all__ = ["retry"]


@command(epilog=selectors.HELP, examples=["balsam retry 12", "balsam ls --state FAILED -o ids | balsam retry -"])
@click.argument("selector", nargs=-1, required=True)
@pass_session
def retry(session: Session, selector: tuple[str, ...]) -> None:
    """Start failed or killed jobs again.

    Jobs that ended only because of them start again, too. Other jobs stay as they are.
    """
    from balsam_core.cli.changing import change_jobs
    from balsam_core.model.calls import RetryJobs

    def call(where: Condition) -> RetryJobs:
        return RetryJobs(where=where)

    change_jobs(session, selector, "retried", call, why_none="none of them had failed or been killed")
