"""``balsam log``: what a job, a launcher or the server has written."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import click

from balsam_core.cli.command import Session, command, pass_session
from balsam_core.cli.values import AT_LEAST_0, AT_LEAST_1

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

    from balsam_core.cli.log_sources import LogSource
    from balsam_core.cli.output import Printer
    from balsam_core.system.tail import TailedFile

DEFAULT_LINES = 100  # for people
POLL = 0.2  # seconds between two looks at the files
ASK_EVERY = 1.0  # seconds between two questions whether more may come


@command(
    examples=[
        "balsam log 12",
        "balsam log last -f",
        "balsam log 12 --attempt 1",
        "balsam log launcher -f",
        "balsam log launcher 3 -n 20",
        "balsam log dbserver",
        "less $(balsam log 12 -o ids)",
    ]
)
@click.argument("what", metavar="[JOB|launcher|dbserver]", default="launcher", required=False)
@click.argument("number", metavar="[N]", type=AT_LEAST_1, required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, until nothing more will come.")
@click.option(
    "-n",
    "--lines",
    type=AT_LEAST_0,
    metavar="LINES",
    help=f"The last so many lines of each file; 0 for all.  [default: {DEFAULT_LINES} in a table, else all]",
)
@click.option("--attempt", type=AT_LEAST_1, metavar="N", help="What attempt N at the job has written.")
@pass_session
def log(
    session: Session, *, what: str, number: int | None, follow: bool, lines: int | None, attempt: int | None
) -> None:
    """Show what a job, a launcher or the server has written.

    JOB is an id or 'last': shows its .out and .err files, and the logs of its hooks, as the last attempt left them, and
    says which earlier attempts have left some, too; --attempt shows those of one. 'launcher' means the newest
    launcher, or launcher N; 'dbserver' the newest logs of the server. With -f, Ctrl-C ends it, or the end of the job,
    the launcher or the server. The other formats than a table give each line with its file, '-o ids' the paths.
    """
    if number is not None and what != "launcher":
        raise click.UsageError("only 'launcher' goes with a number: balsam log launcher 3")
    if attempt is not None and what in {"launcher", "dbserver"}:
        raise click.UsageError("--attempt goes with a job: balsam log 12 --attempt 1")
    if attempt is not None and follow:
        raise click.UsageError("-f follows the last attempt: leave out --attempt")
    printer = session.printer()
    if lines is None:
        lines = DEFAULT_LINES if printer.for_people else 0
    with contextlib.ExitStack() as stack:
        source = _open_source(session, stack, what, number, attempt)
        if printer.format == "ids":
            printer.rows(("file",), ([str(path)] for path in source.paths if path.exists()))
            return
        files = _open_files(source, stack)
        if not follow and not any(path.exists() for path in source.paths):
            from balsam_core.errors import NotFound

            raise NotFound(f"{source.what} has written nothing yet; 'balsam explain {what}' says how it stands")
        _show(printer, source, files, lines or None, follow=follow)


def _open_source(session: Session, stack: ExitStack, what: str, number: int | None, attempt: int | None) -> LogSource:
    from balsam_core.cli import log_sources

    if what == "launcher":
        return log_sources.LauncherSource(session.directory(), number)
    if what == "dbserver":
        return log_sources.ServerSource(session.directory())
    from balsam_core.cli.selectors import choose_one

    db = stack.enter_context(session.open_db())
    return log_sources.JobSource(db, choose_one(db, what), attempt)


def _open_files(source: LogSource, stack: ExitStack) -> list[TailedFile]:
    from balsam_core.system.tail import TailedFile

    files = [TailedFile(path) for path in source.paths]
    for file in files:
        stack.callback(file.close)
    return files


def _show(printer: Printer, source: LogSource, files: list[TailedFile], lines: int | None, *, follow: bool) -> None:
    if printer.for_people:
        _write_pieces(_pieces(printer, source, files, lines, follow=follow))
        if any(file.has_more for file in files):
            printer.note(f"... showing the last {lines} lines of each file: -n 0 for all")
        if source.remark:
            printer.note(source.remark)
    else:
        rows = _lines(_pieces(printer, source, files, lines, follow=follow))
        printer.rows(("file", "line"), rows)


def _pieces(
    printer: Printer, source: LogSource, files: list[TailedFile], lines: int | None, *, follow: bool
) -> Iterator[tuple[Path, bytes]]:
    """Give what is written, with its file."""
    from balsam_core.cli.stdout import results

    for file in files:
        for piece in file.read_last(lines):
            yield file.path, piece
    if not follow:
        return
    if not any(file.path.exists() for file in files):
        printer.note(f"{source.what} has written nothing yet; waiting for it")
    over, ask_at = False, 0.0
    while not over:
        results().flush()
        if time.monotonic() >= ask_at:
            over = source.is_over()  # before the files are read for the last time
            ask_at = time.monotonic() + ASK_EVERY
        for file in files:
            for piece in file.read_new():
                yield file.path, piece
        if not over:
            time.sleep(POLL)


def _write_pieces(pieces: Iterator[tuple[Path, bytes]]) -> None:
    """Write pieces as they are, with a title where the file changes."""
    from balsam_core.cli.stdout import results
    from balsam_core.cli.text import printable

    before: Path | None = None
    at_line_start = True
    for path, piece in pieces:
        if path != before:
            title = f"==> {printable(path.name)} <==\n"
            results().write(title if at_line_start else f"\n{title}")
            before = path
        results().flush()
        results().buffer.write(piece)
        at_line_start = piece.endswith(b"\n")


def _lines(pieces: Iterator[tuple[Path, bytes]]) -> Iterator[tuple[str, str]]:
    """Give whole lines, each with its file; bytes that are not UTF-8 are escaped."""
    rest: dict[Path, bytes] = {}
    for path, piece in pieces:
        *whole, rest[path] = (rest.get(path, b"") + piece).split(b"\n")
        for line in whole:
            yield str(path), line.decode(errors="backslashreplace")
    for path, line in rest.items():
        if line:
            yield str(path), line.decode(errors="backslashreplace")
