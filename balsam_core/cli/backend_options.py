"""What ``balsam init`` and ``balsam restore`` share: the options of a database, its password, its warnings."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from balsam_core.cli.values import converted, mapping
from balsam_core.dbdir.passwords import decoded_password, password_in_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from balsam_core.cli.output import Printer

F = TypeVar("F", bound="Callable[..., Any]")


_OPTIONS = (
    click.option(
        "--option",
        "options",
        multiple=True,
        metavar="KEY=VALUE",
        callback=converted(mapping),
        help="An option of the database type. May be repeated.",
    ),
    click.option("--url", metavar="URL", help="Use a database on a server that somebody else runs."),
    click.option(
        "--password-file",
        metavar="FILE",
        help="File with the password for --url, private to you (0600).  "
        "[default: BALSAM_DB_PASSWORD, or you are asked]",
    ),
)


def backend_options(function: F) -> F:
    """Give a command the arguments of :func:`database_arguments`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def database_arguments(options: dict[str, str], url: str | None, password_file: str | None) -> dict[str, Any]:
    """Return the arguments ``options``, with the URL as one of them, and ``password`` of a function that makes a DB.

    Raises:
        click.UsageError: The URL is given twice.
    """
    if url is not None:
        if "url" in options:
            raise click.UsageError("the URL is given twice: use --url")
        options = {**options, "url": url}
    return {"options": options, "password": _read_password(options.get("url"), password_file)}


def _read_password(url: str | None, file: str | None) -> str | None:
    """Return the password for a server that somebody else runs; None where none is given."""
    if file is not None:
        from balsam_core.system.files import expand
        from balsam_core.system.private_files import private_file

        return decoded_password(private_file(expand(file)).rstrip(b"\r\n"), "what --password-file names")
    if (password := password_in_environment()) is not None:
        return password
    if url is None or not sys.stdin.isatty():
        return None
    prompt = "Password (empty for none)"
    return click.prompt(prompt, default="", show_default=False, hide_input=True, err=True) or None


@contextlib.contextmanager
def shown_warnings(printer: Printer) -> Iterator[None]:
    """Print the warnings that a backend logs."""

    class WarningPrinter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            printer.note(f"Warning: {record.getMessage()}")

    handler = WarningPrinter(logging.WARNING)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
