"""``balsam launcher``: run jobs on this machine until none is left."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balsam_core.cli.command import Session, command, pass_session
from balsam_core.cli.stdout import discard_output_of, results
from balsam_core.cli.text import quote
from balsam_core.cli.values import MINUTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.launcher.options import LauncherResult


@command(
    examples=[
        "balsam launcher --consume-all",
        "balsam launcher --wf-name scan --time-limit-minutes 55",
        "balsam ls --state READY -o ids | balsam launcher --job-file -",
    ]
)
@click.option("--consume-all", is_flag=True, help="Run the jobs of all workflows.")
@click.option("--wf-name", metavar="NAME", help="Run the jobs of this workflow.")
@click.option("--job-file", metavar="FILE", help="Run only the jobs whose ids are in this file; - for stdin.")
@click.option(
    "--max-ranks-per-node",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Run so many processes at the same time (default: the cores that may be used).",
)
@click.option("--time-limit-minutes", type=MINUTES, metavar="M", help="Stop after M minutes, e.g. 55 or 0.5.")
@pass_session
def launcher(
    session: Session,
    *,
    consume_all: bool,
    wf_name: str | None,
    job_file: str | None,
    max_ranks_per_node: int | None,
    time_limit_minutes: float | None,
) -> int:
    """Run jobs on this machine until none is left.

    Jobs run in their working directories, several at a time, each when its parents have finished. Ctrl-C or SIGTERM
    stops cleanly: what runs is asked to end and will be run again by the next launcher. A second Ctrl-C kills at once.

    A launcher that has nothing to do waits for jobs that other launchers hold, if others wait for those. One that was
    killed is noticed within seconds on its own machine, else when its lease is over, and its jobs are taken over.

    The exit code is 10 when jobs failed, 11 when the time limit was reached while it only waited for jobs of other
    launchers, else 0 when nothing was left to do or the time limit was reached.
    """
    if consume_all and (wf_name or job_file):
        raise click.UsageError("--consume-all means all jobs; leave out --wf-name and --job-file, or leave it out")
    if wf_name == "":
        raise click.UsageError("--wf-name needs the name of a workflow")
    if not (consume_all or wf_name or job_file):
        raise click.UsageError("say which jobs to run: --consume-all, --wf-name NAME or --job-file FILE")
    only = None if job_file is None else _read_ids(job_file)

    from balsam_core.cli.selectors import check_exist
    from balsam_core.errors import JobsFailed, TimedOut
    from balsam_core.launcher.loop import Launcher
    from balsam_core.launcher.options import LauncherOptions, available_cores
    from balsam_core.launcher.progress import Progress, progress_on
    from balsam_core.system import logs
    from balsam_core.system.permissions import told_as_db_dir_errors

    options = LauncherOptions(
        slots=max_ranks_per_node or available_cores(),
        workflow=wf_name or "",
        only=only,
        time_limit=None if time_limit_minutes is None else time_limit_minutes * 60,
    )
    printer = session.printer()
    with session.open_db() as db:
        if only is not None:
            check_exist(db, only)
        with told_as_db_dir_errors():
            logs.configure(
                db.directory.log,
                "launcher",
                level=logging.DEBUG if session.verbose else logging.INFO,
                context=f"db={db.path}",
            )
        try:
            result = Launcher(db, options, progress_on(sys.stderr) if printer.for_people else Progress()).run()
        finally:
            logs.close()
    record = {name: value for name, value in vars(result).items() if name != "signal"}
    try:
        printer.one(record, _format_lines(result))
        results().flush()
    except OSError:
        if result.signal is None:
            raise
        for stream in (results(), sys.stderr):  # the terminal was closed: that is why it ends
            discard_output_of(stream.fileno())
    if result.signal is not None:
        return 128 + result.signal
    if result.failed:
        return JobsFailed.exit_code
    return TimedOut.exit_code if result.gave_up else 0


def _format_lines(result: LauncherResult) -> Iterator[str]:
    """Give the lines for people."""
    ended = result.finished + result.failed
    parts = [f"{result.finished} finished", f"{result.failed} failed"]
    if result.killed:
        parts.append(f"{result.killed} killed")
    rate = ended / result.seconds if result.seconds else 0.0
    yield f"{', '.join(parts)} in {result.seconds:.1f} s ({rate:.1f} jobs/s)"
    if result.failed:
        yield "See why jobs failed: balsam ls --state FAILED, then balsam show ID"
    if result.reason:
        left = f"; given back to run again: {result.again}" if result.again else ""
        yield f"Ended early: {result.reason}{left}"
    if result.held_by_others:
        yield f"Still held by others: {result.held_by_others}"
    if result.unfit:
        yield f"Not run, since they need more nodes, ranks, GPUs or time than this launcher has: {result.unfit}"


def _read_ids(name: str) -> tuple[int, ...]:
    """Read a file of ids, separated by white space; ``#`` begins a comment.

    Raises:
        click.UsageError: It can't be read, or holds something else.
    """
    from balsam_core.system.files import reason

    try:
        text = sys.stdin.read() if name == "-" else Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as err:
        why = reason(err) if isinstance(err, OSError) else str(err).lower()
        raise click.UsageError(f"--job-file: {name!r} can't be read: {why}") from None
    ids: dict[int, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.partition("#")[0].replace(",", " ").split():
            if not (word.isascii() and word.isdigit()) or not 0 < int(word[:20]) < 2**63:
                raise click.UsageError(f"--job-file: line {number} holds {quote(word)}, which is no job id")
            ids[int(word)] = None
    if not ids:
        raise click.UsageError(f"--job-file: {name!r} holds no job ids")
    return tuple(ids)
