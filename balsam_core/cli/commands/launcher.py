"""``balsam launcher``: run jobs on this machine until none is left."""

from __future__ import annotations

import gc
import logging
import os
import sys
from math import floor, inf
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from balsam_core.cli.command import Session, command, pass_session
from balsam_core.cli.stdout import discard_output_of, results
from balsam_core.cli.text import printable, quote
from balsam_core.cli.values import MINUTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balsam_core.client.database import Database
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.launcher.options import LauncherOptions, LauncherResult
    from balsam_core.model.calls import Resources, Unfit

MOST_NAMED = 10  # jobs in a line


logger = logging.getLogger(__name__)

ALL = "all"  # of --stop


@command(
    examples=[
        "balsam launcher --consume-all",
        "balsam launcher --wf-name scan --time-limit-minutes 55",
        "balsam ls --state READY -o ids | balsam launcher --job-file -",
        "balsam launcher --consume-all --daemon",
        "balsam launcher --stop",
    ]
)
@click.option("--consume-all", is_flag=True, help="Run the jobs of all workflows.")
@click.option("--wf-name", metavar="NAME", help="Run the jobs of this workflow.")
@click.option("--job-file", metavar="FILE", help="Run only the jobs whose ids are in this file; - for stdin.")
@click.option(
    "--max-ranks-per-node",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Run so many ranks at the same time (default: the processors that may be used).",
)
@click.option("--num-workers", type=click.IntRange(1, 100_000), metavar="N", help="Run at most so many jobs at a time.")
@click.option(
    "--gpus-per-node",
    type=click.IntRange(0, 1000),
    metavar="N",
    help="Use the first N GPUs (default: those that are found, or that CUDA_VISIBLE_DEVICES and the like grant).",
)
@click.option(
    "--job-mode",
    type=click.Choice(["serial", "mpi"]),
    default="mpi",
    help="serial: only jobs of one rank; mpi (default): those of several, too.",
)
@click.option(
    "--mpi",
    metavar="HOW",
    help="How jobs of several ranks start: a kind such as openmpi, mpich, srun or that of a plugin, an MPI program, or "
    "a command line such as 'mpirun -n {ranks}' (default: mpi in settings.toml, else what is found).",
)
@click.option("--time-limit-minutes", type=MINUTES, metavar="M", help="Stop after M minutes, e.g. 55 or 0.5.")
@click.option("--daemon", is_flag=True, help="Run in the background, without this terminal.")
@click.option(
    "--stop",
    is_flag=False,
    flag_value=ALL,
    metavar="[N]",
    help="Stop launcher N of this machine, or all that run in the background.",
)
@click.option("--report-to", type=int, hidden=True, help="Where a launcher in the background says that it runs.")
@pass_session
def launcher(
    session: Session,
    *,
    consume_all: bool,
    wf_name: str | None,
    job_file: str | None,
    max_ranks_per_node: int | None,
    num_workers: int | None,
    gpus_per_node: int | None,
    job_mode: str,
    mpi: str | None,
    time_limit_minutes: float | None,
    daemon: bool,
    stop: str | None,
    report_to: int | None,
) -> int:
    """Run jobs on this machine until none is left.

    Jobs run in their working directories, several at a time, each when its parents have finished. Ctrl-C or SIGTERM
    stops cleanly: what runs is asked to end and will be run again by the next launcher. A second Ctrl-C kills at once.
    With --daemon the launcher goes on in the background: 'balsam log launcher -f' follows it, 'balsam status' shows
    it, and 'balsam launcher --stop' stops it as Ctrl-C does.

    A launcher that has nothing to do waits for the jobs that other launchers hold, and says for whom. One that was
    killed is noticed within seconds on its own machine, else when its lease is over, and its jobs are taken over.
    Launchers of one user on a machine share its processors and GPUs, unless --max-ranks-per-node, --num-workers or
    --gpus-per-node says what to use.

    The exit code is 10 when jobs failed, 11 when the time limit was reached while it only waited for jobs of other
    launchers or for processors or GPUs that these use, 6 when working directories could not be made any more, e.g. on
    a full disk, else 0 when nothing was left to do or the time limit was reached.
    """
    if stop is not None:
        if daemon or job_file or [option for option in _given_options() if not option.startswith("--stop")]:
            raise click.UsageError("--stop goes with no other option")
        return _stop(session, stop)
    if consume_all and (wf_name or job_file):
        raise click.UsageError("--consume-all means all jobs; leave out --wf-name and --job-file, or leave it out")
    if wf_name == "":
        raise click.UsageError("--wf-name needs the name of a workflow")
    if not (consume_all or wf_name or job_file):
        raise click.UsageError("say which jobs to run: --consume-all, --wf-name NAME or --job-file FILE")

    from balsam_core.dbdir.settings import mpi_setting
    from balsam_core.launcher.mpi import find_mpi
    from balsam_core.launcher.options import LauncherOptions
    from balsam_core.system.hardware import usable_cores

    cores = usable_cores()
    options = LauncherOptions(
        slots=max_ranks_per_node or len(cores),
        workflow=wf_name or "",
        only=None if job_file is None else _read_ids(job_file),
        time_limit=None if time_limit_minutes is None else time_limit_minutes * 60,
        most_jobs=num_workers,
        cores=cores,
        gpus=_choose_gpus(gpus_per_node),
        mpi=None if job_mode == "serial" else find_mpi(mpi or mpi_setting(), _warn),
        background=report_to is not None,
        shares_cores=max_ranks_per_node is None and num_workers is None,
        shares_gpus=gpus_per_node is None,
    )
    with session.open_db() as db:
        _check_selection(db, options)
        if not daemon:
            return _run(session, db, options, job_mode, report_to)
    return _start(session, db.directory, options.only)


def _warn(line: str) -> None:
    click.echo(f"Warning: {printable(line)}", err=True)


def _check_selection(db: Database, options: LauncherOptions) -> None:
    """Check that there are jobs of the workflow, and those of the job file.

    Raises:
        NotFound: There are none.
    """
    from balsam_core.cli.selectors import check_exist, check_workflow

    if options.workflow:
        check_workflow(db, options.workflow)
    if options.only is not None:
        check_exist(db, options.only)


def _run(session: Session, db: Database, options: LauncherOptions, job_mode: str, report_to: int | None) -> int:
    """Run a launcher to its end."""
    from balsam_core.errors import JobsFailed, NoResources, PartlyDone, TimedOut
    from balsam_core.launcher import background
    from balsam_core.launcher.loop import Launcher
    from balsam_core.launcher.progress import Progress, progress_on
    from balsam_core.system import logs
    from balsam_core.system.permissions import told_as_db_dir_errors

    level = logging.DEBUG if session.verbose else logging.INFO

    def open_log(number: int) -> None:
        with told_as_db_dir_errors():
            log = logs.configure(db.directory.log, "launcher", level=level, context=f"db={db.path}", number=number)
            if report_to is not None:
                background.report(report_to, number, log)
        gc.freeze()  # the modules, which would be searched for garbage again and again while jobs run

    printer = session.printer()
    shown = printer.for_people and not options.background
    try:
        result = Launcher(db, options, progress_on(sys.stderr) if shown else Progress(), open_log).run()
        lines = list(_format_lines(result, _why_no_ranks(options, job_mode)))
        for line in lines:
            logger.info("%s", line)
    finally:
        logs.close()
    record = {name: value for name, value in vars(result).items() if name not in {"signal", "resources"}}
    try:
        printer.one(record, lines, done="; ".join(lines))
        results().flush()
    except (OSError, PartlyDone):
        if result.signal is None:
            raise
        for stream in (results(), sys.stderr):  # the terminal was closed: that is why it ends
            discard_output_of(stream.fileno())
    if result.signal is not None:
        return 128 + result.signal
    if result.fault:
        return NoResources.exit_code
    if result.failed:
        return JobsFailed.exit_code
    return TimedOut.exit_code if result.gave_up else 0


def _start(session: Session, db: DBDir, only: Sequence[int] | None) -> int:
    """Start a launcher in the background."""
    from balsam_core.dbdir.launcher_logs import log_file
    from balsam_core.launcher import background

    words = [sys.executable, "-m", "balsam_core.cli", "--db", str(db.path), "-o", session.format]
    words += ["-v"] if session.verbose else []
    words += ["launcher", *_given_options(), *([] if only is None else ["--job-file=-"])]
    started = background.start([*words, "--report-to"], only, db.path)
    if started.launcher is None:
        sys.stderr.write(started.errors.decode(errors="replace"))
        return started.exit_code or 1
    record = {"launcher": started.launcher, "pid": started.pid, "log": str(log_file(db, started.launcher))}
    text = f"Launcher {started.launcher} runs in the background (pid {started.pid}): balsam log launcher -f follows it"
    session.printer().one(record, text)
    return 0


def _given_options() -> Iterator[str]:
    """Give the options of this command line that decide what a launcher does, but for the job file."""
    ctx = click.get_current_context()
    for option in ctx.command.params:
        name, value = option.name or "", ctx.params.get(option.name or "")
        is_given = (
            value is not None and value is not False and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        )
        if is_given and name not in {"daemon", "job_file"}:
            yield option.opts[0] if value is True else f"{option.opts[0]}={value}"


def _stop(session: Session, which: str) -> int:
    """Stop launchers of this machine."""
    from balsam_core.client.slices import counted
    from balsam_core.launcher import background

    if which != ALL and not (which.isascii() and which.isdigit() and 0 < int(which[:20]) < 2**63):
        raise click.UsageError(f"--stop: {quote(which)} is no id of a launcher; 'balsam status' shows them")
    db = session.directory()
    stopped = background.stop(db, None if which == ALL else int(which))
    text = f"stopped {counted(len(stopped), 'launcher')}: {', '.join(map(str, stopped))}"
    if not stopped:
        text = "stopped no launcher: none runs in the background on this machine"
        if others := [found.id for found in background.running_here(db)]:
            text += f"; name one that doesn't: balsam launcher --stop {others[0]}"
    session.printer().one({"stopped": len(stopped), "ids": stopped}, text, ids=stopped)
    return 0


def _why_no_ranks(options: LauncherOptions, job_mode: str) -> str:
    """Return why a launcher runs no jobs of several ranks; empty where it does."""
    if options.mpi is not None:
        return ""
    return "has no MPI (see --mpi)" if job_mode == "mpi" else "runs jobs of one rank only (--job-mode serial)"


def _choose_gpus(count: int | None) -> tuple[str, ...]:
    """Return the names of the GPUs to use: the first ``count`` of those that are granted; else simply numbers."""
    from balsam_core.system.hardware import visible_gpus

    found = visible_gpus(os.environ)
    if count is None:
        return found
    return found[:count] if len(found) >= count else tuple(map(str, range(count)))


def _format_lines(result: LauncherResult, why_no_ranks: str) -> Iterator[str]:
    """Give the lines for people."""
    ended = result.finished + result.failed
    parts = [f"{result.finished} finished", f"{result.failed} failed"]
    if result.killed:
        parts.append(f"{result.killed} killed")
    rate = ended / result.seconds if result.seconds else 0.0
    yield f"{', '.join(parts)} in {result.seconds:.1f} s ({rate:.1f} jobs/s)"
    if result.failed:
        yield "See which jobs failed, and why: balsam ls --root-failures, then balsam log ID"
    if result.reason:
        left = f"; given back to run again: {result.again}" if result.again else ""
        yield f"Ended early: {result.reason}{left}"
    if result.held_by_others:
        yield f"Still held by others: {result.held_by_others}"
    if result.changed_parents:
        ids = result.changed_parents
        named = ", ".join(map(str, ids[:MOST_NAMED])) + (f" and {len(ids) - MOST_NAMED} more" * (len(ids) > MOST_NAMED))
        yield f"Files of their parents changed while these jobs ran, which have links to them: {named} (balsam show ID)"
    for unfit in result.unfit:
        yield f"Not run: {_describe_unfit(unfit, result.resources, why_no_ranks)}"
    if result.waiting:
        what = "1 job that waits" if result.waiting == 1 else f"{result.waiting} jobs that wait"
        yield f"Not run: {what} for parents (balsam ls --state AWAITING_PARENTS, then balsam explain ID)"


def _describe_unfit(unfit: Unfit, had: Resources, why_no_ranks: str) -> str:
    """Return which jobs a launcher couldn't run, and what each lacks."""
    needs, has = [], []
    for needed, available, what in (
        (unfit.nodes, had.nodes, "node{s}"),
        (unfit.ranks_per_node, had.ranks_per_node, "rank{s} per node"),
        (unfit.gpus_per_node, had.gpus_per_node, "GPU{s} per node"),
        (unfit.minutes, inf if had.minutes_left is None else floor(had.minutes_left), "minute{s}"),
    ):
        if needed > available:
            needs.append(f"{needed:g} {what.format(s='' if needed == 1 else 's')}")
            left = " left" if what.startswith("minute") else ""
            has.append(why_no_ranks if what.startswith("rank") and why_no_ranks else f"has {available:g}{left}")
    verb = "needs" if unfit.jobs == 1 else "need"
    ids = f"id {unfit.first}" if unfit.jobs == 1 else f"ids {unfit.first}-{unfit.last}"
    if unfit.last - unfit.first >= unfit.jobs:
        ids = f"ids from {unfit.first} to {unfit.last}"
    jobs = "job" if unfit.jobs == 1 else "jobs"
    return f"{unfit.jobs} {jobs} {verb} {' and '.join(needs)} ({ids}); this launcher {' and '.join(has)}"


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
