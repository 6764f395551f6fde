"""``balsam dep``: make one job wait for another."""

from __future__ import annotations

import click

from balsam_core.cli.command import Session, command, pass_session
from balsam_core.cli.selectors import choose_one


@command(examples=["balsam dep 1 2", "balsam dep 1 last"])
@click.argument("parent")
@click.argument("child")
@pass_session
def dep(session: Session, parent: str, child: str) -> None:
    """Make the job CHILD wait for the job PARENT.

    Each is an id or 'last'. A dependency that would close a circle is refused.
    """
    with session.open_db() as db:
        parent_id, child_id = choose_one(db, parent), choose_one(db, child)
        added = db.jobs.add_dependency(parent_id, child_id)
    text = (
        f"job {child_id} waits for job {parent_id}" if added else f"job {child_id} waited for job {parent_id} already"
    )
    session.printer().one({"parent": parent_id, "child": child_id, "added": added}, text, ids=child_id, done=text)
