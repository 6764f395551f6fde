"""``balsam init``: create or refresh a DB directory."""

from __future__ import annotations

from typing import Any

import click

from balsam_core.cli.backend_options import backend_options, database_arguments, shown_warnings
from balsam_core.cli.command import Session, command, pass_session


@command(
    examples=[
        "balsam init ~/testdb",
        "balsam init ~/testdb --db-type sqlite3",
        "balsam init ~/testdb --db-type postgres --url postgresql://me@dbhost/jobs?sslmode=verify-full",
        "export BALSAM_DB_PATH=~/testdb",
    ]
)
@click.argument("path")
@click.option(
    "--db-type", metavar="TYPE", help="Database type; see 'balsam plugins list'.  [default: sqlite, or what PATH has]"
)
@backend_options
@pass_session
def init(session: Session, /, path: str, db_type: str | None, **database: Any) -> None:  # noqa: ANN401  (backend_options)
    """Create a DB directory, or refresh an existing one.

    PATH is a new or empty directory, or a DB, which is brought up to the schema of this version. If the DB has a
    server and the tables need a change, that is stopped first and started again afterwards.
    """
    if session.db is not None:
        raise click.UsageError("init takes the directory as its argument, not by --db: balsam init PATH")
    from balsam_core.admin.initialise import initialise
    from balsam_core.cli.text import printable

    printer = session.printer()
    with shown_warnings(printer):
        done = initialise(path, db_type, **database_arguments(**database))
    server = done.restarted
    result = {
        "path": str(done.db.path),
        "db_type": done.db.db_type,
        "id": done.db.id,
        "created": done.created,
        "migrated": done.migrated,
        "server": f"{server.host}:{server.port}" if server else None,
    }
    verb = "created" if done.created else "brought up to date:" if done.migrated else "up to date:"
    lines = [f"{verb} {printable(str(done.db.path))} ({done.db.db_type})"]
    if server:
        lines.append(f"its server was stopped meanwhile and runs again at {result['server']}")
    printer.one(result, lines, done="; ".join(lines))
