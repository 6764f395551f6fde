"""``balsam restore``: make a DB of what ``balsam backup`` saved."""

from __future__ import annotations

import click

from balsam_core.cli.backend_options import backend_options, read_password, shown_warnings, with_url
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
def restore(
    session: Session,
    file: str,
    path: str,
    options: dict[str, str],
    url: str | None,
    password_file: str | None,
) -> None:
    """Make a DB of what 'balsam backup' has saved in FILE.

    PATH is a new or empty directory. The DB has the database type and the id of the one that was saved, and is brought
    up to the schema of this version. Options of the database type are not in the backup; give them again. With --url,
    it is put into an empty database there.
    """
    if session.db is not None:
        raise click.UsageError("restore takes the directory as its argument, not by --db: balsam restore FILE PATH")
    from balsam_core.admin.backup import restore as load
    from balsam_core.cli.text import printable

    options = with_url(options, url)
    printer = session.printer()
    with shown_warnings(printer):
        directory, saved = load(file, path, options, password=read_password(options.get("url"), password_file))
    path = str(directory.path)
    result = {"path": path, "db_type": directory.db_type, "id": directory.id, "saved": saved.created}
    printer.one(result, f"restored {printable(path)} ({directory.db_type}), as it was at {printable(saved.created)}")
