"""What ``balsam init`` and ``balsam restore`` share: the options of a database, its password, its warnings."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from balsam_core.cli.values import PAIR, mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from balsam_core.cli.output import Printer

__all__ = ["backend_options", "parse_options", "read_password", "shown_warnings"]

F = TypeVar("F", bound="Callable[..., Any]")

PASSWORD_VARIABLE = "BALSAM_DB_PASSWORD"  # noqa: S105  (a name, no password)

_OPTIONS = (
    click.option(
        "--option",
        type=PAIR,
        multiple=True,
        metavar="KEY=VALUE",
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
    """Give a command the arguments ``option``, ``url`` and ``password_file``."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def parse_options(option: tuple[tuple[str, str], ...], url: str | None) -> dict[str, str]:
    """Return ``--option`` and ``--url`` as one dictionary.

    Raises:
        click.UsageError: An option is given twice.
    """
    options = mapping("--option", option)
    if url is not None:
        if "url" in options:
            raise click.UsageError("the URL is given twice: use --url")
        options["url"] = url
    return options


def read_password(url: str | None, file: str | None) -> str | None:
    """Return the password for a server that somebody else runs; None where none is given."""
    if file is not None:
        from balsam_core.system.files import expand
        from balsam_core.system.private_files import private_file

        return private_file(expand(file)).decode(errors="surrogateescape").rstrip("\r\n")
    if (password := os.environ.get(PASSWORD_VARIABLE)) is not None:
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
