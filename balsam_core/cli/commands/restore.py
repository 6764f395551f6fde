"""``balsam restore``: make a DB of what ``balsam backup`` saved."""

from __future__ import annotations

from typing import Any

import click

from balsam_core.cli.backend_options import backend_options, database_arguments, shown_warnings
from balsam_core.cli.command import Session, command, pass_session


@command(
    examples=[
        "balsam restore ~/testdb.backup ~/testdb2",
        "balsam restore ~/testdb.backup ~/testdb2 --option durability=relaxed",
    ]
)
@click.argument("file")
@click.argument("path")
@backend_options
@pass_session
def restore(session: Session, /, file: str, path: str, **database: Any) -> None:  # noqa: ANN401  (backend_options)
    """Make a DB of what 'balsam backup' has saved in FILE.

    PATH is a new or empty directory. The DB has the database type and the id of the one that was saved, and is brought
    up to the schema of this version. Options of the database type are not in the backup; give them again. With --url,
    it is put into an empty database there.
    """
    if session.db is not None:
        raise click.UsageError("restore takes the directory as its argument, not by --db: balsam restore FILE PATH")
    from balsam_core.admin.backup import restore as load
    from balsam_core.cli.text import printable

    printer = session.printer()
    with shown_warnings(printer):
        directory, saved = load(file, path, **database_arguments(**database))
    path = str(directory.path)
    result = {"path": path, "db_type": directory.db_type, "id": directory.id, "saved": saved.created}
    line = f"restored {printable(path)} ({directory.db_type}), as it was at {printable(saved.created)}"
    printer.one(result, line, done=line)
