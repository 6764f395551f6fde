"""``balsam backup``: save the DB in a file."""

from __future__ import annotations

import click

from balsam_core.cli.command import Session, command, pass_session


@command(examples=["balsam backup ~/testdb.backup", "balsam backup ~/testdb.backup --db ~/testdb"])
@click.argument("file")
@pass_session
def backup(session: Session, file: str) -> None:
    """Save the DB in a file, while it is in use.

    FILE is a new file, private to you; nothing is ever written over. It holds all jobs, apps and histories as they are
    at one moment, but neither the jobs' working directories (data/) nor keys and passwords. 'balsam restore' makes a
    DB of it.
    """
    from balsam_core.admin.backup import backup as save
    from balsam_core.cli.text import printable
    from balsam_core.system.files import expand

    directory = session.directory()
    made = save(directory, file)
    path = str(expand(file))
    result = {"file": path, "db": str(directory.path), "db_type": made.db_type, "id": made.db_id, "size": made.size}
    line = f"saved {printable(str(directory.path))} ({made.db_type}) in {printable(path)} ({made.size / 1e6:.1f} MB)"
    session.printer().one(result, line, done=line)
