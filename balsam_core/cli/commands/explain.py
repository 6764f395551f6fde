"""``balsam explain``: why a job doesn't run, and what to do about it."""

from __future__ import annotations

import click

from balsam_core.cli.command import Session, command, pass_session
from balsam_core.cli.selectors import choose_one


@command(examples=["balsam explain 12", "balsam explain last -o json"])
@click.argument("job")
@pass_session
def explain(session: Session, job: str) -> None:
    """Say why a job waits, or how it ended, and what to do about it.

    JOB is an id or 'last'. The reason is the one at the root: of a job whose parents wait or have failed, the first job
    that the others wait for, or that failed. The last line is the command that mends it, where something is to be done.
    """
    from balsam_core.cli.text import printable

    with session.open_db() as db:
        found = db.explain(choose_one(db, job))
    record = {
        "id": found.job,
        "state": found.state,
        "reason": found.reason,
        "text": ". ".join(found.lines),
        "jobs": found.jobs,
        "fix": found.fix,
    }
    lines = [f"{line[0].upper()}{line[1:]}." if line[0] != "'" else f"{line}." for line in map(printable, found.lines)]
    session.printer().one(record, [*lines, *([f"Fix: {printable(found.fix)}"] if found.fix else [])])
