"""Exactly once: many clients write while faults happen; then what they were told is compared with what is stored.

::

    with writers(db, 16, tmp_path) as clients:
        clients.begin()
        ...  # inflict faults; wait_until(lambda: clients.acked > 1000)
        clients.finish()
        report = check(clients.journals, rows_by_sqlite(db))
    report.assert_exact()
    assert report.longest_stall < 5

An acknowledged job must be there, once, under the id that was told. A write that ended in ``OutcomeUnknown``, or whose
client was killed meanwhile, may be there once or not at all; one that ended in any other error must not be there: these
errors say that nothing was changed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from balsam_core import open_db
from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from served_db import ServedDB

PROGRAM = Path(__file__).with_name("exact_writer.py")
UNKNOWN = "outcome-unknown"


# ------------------------------------------------------------------------------------------------------------- writing


class Writers:
    """Running clients; each is a process of its own, ``processes[i]``, with the journal ``journals[i]``."""

    def __init__(self, processes: list[subprocess.Popen[str]], journals: list[Path], stop: Path) -> None:
        self.processes = processes
        self.journals = journals
        self._stop = stop

    def begin(self) -> None:
        """Let all that have not begun begin together, once their databases are open."""
        for process in self.processes:
            assert process.stdout.readline() == "ready\n", process.communicate(timeout=60)[1]
        for process in self.processes:
            process.stdin.write("\n")
            process.stdin.flush()

    @property
    def acked(self) -> int:
        """How many writes have been acknowledged until now."""
        return sum(path.read_bytes().count(b" acked ") for path in self.journals if path.exists())

    def wait_for_more(self, count: int = 0, *, seconds: float = 60) -> float:
        """Wait until more than so many writes have been acknowledged from now on; returns the seconds."""
        began, before = time.monotonic(), self.acked
        wait_until(lambda: self.acked > before + count, "acknowledgements", seconds=seconds)
        return time.monotonic() - began

    def snapshot(self, directory: Path) -> list[Path]:
        """Copy the journals as they are now to a new directory, for a check of what is stored a moment later."""
        directory.mkdir()
        return [Path(shutil.copy(path, directory)) for path in self.journals if path.exists()]

    def stop(self) -> None:
        """Tell all to end after the write at hand."""
        self._stop.touch()

    def finish(self, seconds: float = 180) -> None:
        """Wait until all have ended well; those that were killed count as well ended."""
        wait_until(
            lambda: all(process.poll() is not None for process in self.processes),
            "the end of all writers",
            seconds=seconds,
        )
        for process in self.processes:
            assert process.returncode in {0, -9}, process.stderr.read()


@contextmanager
def writers(
    db: Path | str,
    number: int,
    directory: Path,
    *,
    count: int = 0,
    name: str = "w",
    kill_every: int = 0,
    timeout: float | None = None,
    pause: float = 0.0,
    env: Mapping[str, str] | None = None,
    wrap: Callable[[list[str]], list[str]] = lambda argv: argv,
) -> Iterator[Writers]:
    """Start clients; they wait for :meth:`Writers.begin`, and are killed in the end if they still run.

    Args:
        db: The DB directory.
        number: How many clients.
        directory: For journals and stop file; an existing directory, not in the DB.
        count: Jobs that each client adds; 0 for as many as it can until it is stopped.
        name: Beginning of the clients' names; must differ when several sets write to one DB.
        kill_every: Each client kills every Nth of its jobs right after adding it.
        timeout: Seconds for each call; None for the API's default.
        pause: Seconds between two jobs of a client.
        env: The clients' environment, e.g. of ``shims.preload``.
        wrap: Changes the command, e.g. ``host.argv`` of ``namespaces`` to run the clients on another host.
    """
    stop = directory / f"{name}.stop"
    journals = [directory / f"{name}{i}.journal" for i in range(number)]
    with contextlib.ExitStack() as stack:
        processes = []
        for i, journal in enumerate(journals):
            spec = {
                "db": str(db),
                "writer": f"{name}{i}",
                "journal": str(journal),
                "stop": str(stop),
                "count": count,
                "kill_every": kill_every,
                "timeout": timeout,
                "pause": pause,
            }
            process = subprocess.Popen(
                wrap([sys.executable, str(PROGRAM), json.dumps(spec)]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=env,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        yield Writers(processes, journals, stop)


# ------------------------------------------------------------------------------------------------------------ checking


class Row(NamedTuple):
    """A stored job."""

    id: int
    name: str
    state: str


def rows_by_sqlite(db: Path) -> list[Row]:
    """Read the writers' jobs from the file itself, after checking all of it."""
    with contextlib.closing(sqlite3.connect(db / "db.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        found = connection.execute(
            "SELECT jobs.id, jobs.name, jobs.state FROM jobs JOIN workflows ON workflows.id = jobs.workflow_id"
            " WHERE workflows.name = 'exact'"
        )
        return [Row(*row) for row in found]


def rows_by_api(db: Path | str) -> list[Row]:
    """Read the writers' jobs through the public API: any backend, with or without a server."""
    with open_db(db) as opened:
        return [Row(*row) for row in opened.jobs.where(workflow="exact").rows("id", "name", "state")]


@dataclass
class Step:
    """What one client was told of one write."""

    sent: float
    ended: float | None = None
    answer: int | None = None
    error: str | None = None


def read_journal(journal: Path) -> dict[tuple[str, int], Step]:
    """Return the steps by kind and number; a last line that is cut short is left out."""
    steps: dict[tuple[str, int], Step] = {}
    for line in journal.read_text().splitlines(keepends=True) if journal.exists() else []:
        if not line.endswith("\n"):
            break
        kind, number, what, at, *words = line.split()
        if what == "sent":
            steps[kind, int(number)] = Step(float(at))
            continue
        step = steps[kind, int(number)]
        step.ended = float(at)
        if what == "acked":
            step.answer = int(words[0])
        else:
            step.error = words[0]
    return steps


@dataclass
class Report:
    """The comparison. Times in seconds.

    Attributes:
        sent: Writes that were begun.
        acked: Writes that were acknowledged.
        errors: Failed writes by error code.
        open: Writes whose client died before it was told.
        applied: Of those with an unknown outcome or a dead client, how many are stored.
        lost: Acknowledged, but not stored.
        doubled: Stored more than once.
        misnumbered: Acknowledged under another id than it is stored.
        denied: Stored, though an error said that nothing was changed.
        unsent: Stored, though nobody sent it.
        killed_wrongly: Kills whose answer or effect is wrong.
        longest_stall: Longest time in which no client at all was acknowledged anything.
        longest_wait: Longest time in which one client was acknowledged nothing, while it lived.
        throughput: Acknowledged writes a second, from the first sent to the last acknowledged.
        p50, p99, worst: Latency of the acknowledged writes.
    """

    sent: int = 0
    acked: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    open: int = 0
    applied: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    misnumbered: list[str] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)
    unsent: list[str] = field(default_factory=list)
    killed_wrongly: list[str] = field(default_factory=list)
    longest_stall: float = 0.0
    longest_wait: float = 0.0
    throughput: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    worst: float = 0.0

    @property
    def faults(self) -> dict[str, list[str]]:
        """What must not be, by kind."""
        kinds = ("lost", "doubled", "misnumbered", "denied", "unsent", "killed_wrongly")
        return {kind: found for kind in kinds if (found := getattr(self, kind))}

    def assert_exact(self) -> None:
        """Fail if anything was lost, doubled or told wrongly."""
        assert not self.faults, {kind: found[:5] for kind, found in self.faults.items()} | {"report": str(self)}

    def __str__(self) -> str:
        faults = ", ".join(f"{len(found)} {kind}" for kind, found in self.faults.items()) or "exact"
        return (
            f"{self.sent} sent, {self.acked} acked, {sum(self.errors.values())} errors, {self.open} open,"
            f" {self.applied} of the unknown applied: {faults}; {self.throughput:.0f}/s,"
            f" p50 {self.p50 * 1e3:.1f} ms, p99 {self.p99 * 1e3:.1f} ms, worst {self.worst * 1e3:.0f} ms,"
            f" stall {self.longest_stall * 1e3:.0f} ms, wait {self.longest_wait * 1e3:.0f} ms"
        )


def check(journals: Iterable[Path], rows: Iterable[Row], *, ended: bool = True) -> Report:
    """Compare the journals of all writers with all that is stored of theirs.

    Args:
        journals: ``NAME.journal`` for each writer ``NAME``.
        rows: The stored jobs of these writers.
        ended: Whether the writers had ended. If not, copy the journals first (:meth:`Writers.snapshot`) and then take
            the rows; jobs that are sent in between count as sent.
    """
    report = Report()
    stored: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        stored[row.name].append(row)
    report.doubled = [name for name, same in stored.items() if len(same) > 1]
    known: set[str] = set()
    histories = []
    for journal in journals:
        steps = read_journal(journal)
        histories.append(list(steps.values()))
        for (kind, number), step in steps.items():
            name = f"{journal.stem}-{number}"
            known.add(name)
            same = stored.get(name, [])
            _count(report, step)
            if kind == "add":
                _judge_addition(report, name, step, same)
            else:
                _judge_kill(report, name, step, same)
    report.unsent = sorted(set(stored) - known) if ended else []
    _measure(report, histories)
    return report


def exact_report(served: ServedDB, journals: Iterable[Path]) -> Report:
    """Stop the server and compare; nothing may be lost, doubled or told wrongly, and no write may have failed."""
    served.stop()
    report = check(journals, rows_by_sqlite(served.path))
    report.assert_exact()
    assert not report.errors, report
    return report


def _count(report: Report, step: Step) -> None:
    report.sent += 1
    report.acked += step.answer is not None
    if step.error is not None:
        report.errors[step.error] += 1
    report.open += step.ended is None


def _judge_addition(report: Report, name: str, step: Step, same: list[Row]) -> None:
    if step.answer is not None:
        if not same:
            report.lost.append(name)
        elif step.answer not in {row.id for row in same}:
            report.misnumbered.append(name)
    elif step.error in {None, UNKNOWN}:
        report.applied += bool(same)
    elif same:
        report.denied.append(name)


def _judge_kill(report: Report, name: str, step: Step, same: list[Row]) -> None:
    killed = bool(same) and same[0].state == "USER_KILLED"
    if step.answer is not None:
        # Killing twice changes nothing the second time, and would answer 0.
        if step.answer != 1 or (same and not killed):
            report.killed_wrongly.append(name)
    elif step.error in {None, UNKNOWN}:
        report.applied += killed
    elif killed:
        report.denied.append(name)


def _measure(report: Report, histories: list[list[Step]]) -> None:
    latencies: list[float] = []
    moments: list[float] = []
    begun: list[float] = []
    for steps in histories:
        acked = [step for step in steps if step.answer is not None]
        latencies += [step.ended - step.sent for step in acked]
        own = [steps[0].sent, *sorted(step.ended for step in acked)] if steps else []
        report.longest_wait = max([report.longest_wait, *(b - a for a, b in pairwise(own))])
        moments += own[1:]
        begun += own[:1]
    if not moments:
        return
    moments = [min(begun), *sorted(moments)]
    report.longest_stall = max(b - a for a, b in pairwise(moments))
    report.throughput = len(latencies) / (moments[-1] - moments[0])
    latencies.sort()
    report.p50, report.p99 = (latencies[int(len(latencies) * part)] for part in (0.5, 0.99))
    report.worst = latencies[-1]
