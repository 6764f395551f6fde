"""``balsam init``: create or refresh a DB directory."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from balsam_core.cli.command import command, pass_session
from balsam_core.cli.values import PAIR, mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from balsam_core.cli.command import Session
    from balsam_core.cli.output import Printer

__all__ = ["backend_options", "given_options", "given_password", "init", "shown_warnings"]

F = TypeVar("F", bound="Callable[..., Any]")

PASSWORD_VARIABLE = "BALSAM_DB_PASSWORD"  # noqa: S105  (a name, no password)


def backend_options(function: F) -> F:
    """Give a command the options of a database: ``option``, ``url`` and ``password_file``."""
    for option in (
        click.option(
            "--password-file",
            metavar="FILE",
            help="File with the password for --url, private to you (0600).  "
            "[default: BALSAM_DB_PASSWORD, or you are asked]",
        ),
        click.option("--url", metavar="URL", help="Use a database on a server that somebody else runs."),
        click.option(
            "--option",
            type=PAIR,
            multiple=True,
            metavar="KEY=VALUE",
            help="An option of the database type. May be repeated.",
        ),
    ):
        function = option(function)
    return function


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
def init(
    session: Session,
    path: str,
    db_type: str | None,
    option: tuple[tuple[str, str], ...],
    url: str | None,
    password_file: str | None,
) -> None:
    """Create a DB directory, or refresh an existing one.

    PATH is a new or empty directory, or a DB, which is brought up to the schema of this version. If the DB has a
    server and the tables need a change, that is stopped first and started again afterwards.
    """
    if session.db is not None:
        raise click.UsageError("init takes the directory as its argument, not by --db: balsam init PATH")
    from balsam_core.admin.initialise import initialise

    options = given_options(option, url)
    printer = session.printer()
    with shown_warnings(printer):
        done = initialise(path, db_type, options, password=given_password(options.get("url"), password_file))
    server = done.restarted
    result = {
        "path": str(done.db.path),
        "db_type": done.db.db_type,
        "id": done.db.id,
        "created": done.created,
        "server": f"{server.host}:{server.port}" if server else None,
    }
    verb = "created" if done.created else "up to date:"
    from balsam_core.cli.text import printable

    lines = [f"{verb} {printable(str(done.db.path))} ({done.db.db_type})"]
    if server:
        lines.append(f"its server was stopped meanwhile and runs again at {result['server']}")
    printer.one(result, lines)


def given_options(option: tuple[tuple[str, str], ...], url: str | None) -> dict[str, str]:
    """Return what ``--option`` and ``--url`` say.

    Raises:
        click.UsageError: An option is given twice.
    """
    options = mapping("--option", option)
    if url is not None:
        if "url" in options:
            raise click.UsageError("the URL is given twice: use --url")
        options["url"] = url
    return options


def given_password(url: str | None, file: str | None) -> str | None:
    """Return the password for a server that somebody else runs; None where none is given."""
    if file is not None:
        from balsam_core.system.files import expand
        from balsam_core.system.private_files import private_file

        return private_file(expand(file)).decode(errors="surrogateescape").rstrip("\r\n")
    if (given := os.environ.get(PASSWORD_VARIABLE)) is not None:
        return given
    if url is None or not sys.stdin.isatty():
        return None
    prompt = "Password (empty for none)"
    return click.prompt(prompt, default="", show_default=False, hide_input=True, err=True) or None


@contextlib.contextmanager
def shown_warnings(printer: Printer) -> Iterator[None]:
    """Show what a backend logs as a warning."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            printer.note(f"Warning: {record.getMessage()}")

    notes = Notes(logging.WARNING)
    root = logging.getLogger()
    root.addHandler(notes)
    try:
        yield
    finally:
        root.removeHandler(notes)
