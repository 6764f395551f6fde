"""PostgreSQL's and MariaDB's servers stand still: clients wait or fail in time; one that stays so is replaced."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest
from amounts import at_most
from backend_dbs import hold, report_of
from exact import writers
from resources import is_alive

from balsam_core import Job, open_db
from balsam_core.errors import BalsamError, OutcomeUnknown, Unavailable
from balsam_core.model.calls import AddJobs, CountJobs
from balsam_core.testing.tools import signal_all

HURRIED = """
import sys, time
from balsam_core import BalsamError, Job, open_db
from balsam_core.model.calls import AddJobs, GetInfo
began = time.monotonic()
try:
    with open_db(sys.argv[1]) as db:
        db.transport.run(GetInfo(), timeout=3)
except BalsamError as err:
    print(err.code, f"{time.monotonic() - began:.1f}", err)
"""


def server_of(served):
    """Return the server and its children, without the watchdog."""
    return served.processes()[1:]


def attempt(db, call, seconds):
    """Run a call that can't be answered; returns the error and how much later than asked it came."""
    began = time.monotonic()
    with pytest.raises(BalsamError) as caught:
        db.transport.run(call, timeout=seconds)
    return caught.value, time.monotonic() - began - seconds


def test_frozen_server(backend, kind, tmp_path, amount, verdict):
    """The server is frozen for good: it is replaced; callers with a deadline are told in time (T28)."""
    rounds = amount(1, 5)
    acted, late = [], []
    with (
        open_db(backend.path) as db,
        open_db(backend.path) as other,
        writers(backend.path, 3, tmp_path, name="frozen") as clients,
    ):
        clients.begin()
        for turn in range(rounds):
            db.jobs.count()
            other.jobs.count()
            clients.wait_for_more(6)
            before, frozen = backend.address, server_of(backend)
            signal_all(signal.SIGSTOP, reversed(frozen))  # so that nobody is told of a stopped child
            began = time.monotonic()
            program = subprocess.Popen(
                [sys.executable, "-c", HURRIED, str(backend.path)], stdout=subprocess.PIPE, text=True
            )
            writing, seconds = attempt(db, AddJobs(jobs=[Job(name=f"late{turn}", command="true")]), 2.0)
            assert isinstance(writing, (OutcomeUnknown, Unavailable))
            late.append(seconds)
            reading, seconds = attempt(other, CountJobs(), 2.0)
            assert isinstance(reading, Unavailable)
            late.append(seconds)
            with program:
                code, took, *_ = program.communicate(timeout=60)[0].split()
            assert code == Unavailable.code
            late.append(float(took) - 3)
            backend.wait_for_another(before, seconds=at_most(30))
            acted.append(time.monotonic() - began)
            assert not any(is_alive(process.pid) for process in frozen)
            assert db.jobs.where(name=f"late{turn}").count() <= isinstance(writing, OutcomeUnknown)
        clients.wait_for_more(6)
        clients.stop()
        clients.finish()
    report = report_of(clients, backend, "frozen")
    report.assert_exact()
    assert not report.errors
    assert max(acted) <= at_most(15)
    assert max(late) <= at_most(4)  # libpq takes at least 2 s to give up, and a program must start
    verdict(
        "T28",
        f"{kind}: server SIGSTOPped for good",
        f"{rounds} times: replaced after {min(acted):.1f} to {max(acted):.1f} s; callers with 2 and 3 s were told at"
        f" most {max(late):.1f} s late: {report}",
    )


def test_frozen_for_a_while_and_continued(backend, kind, tmp_path, amount, verdict):
    """The server's main process, or all of it, is frozen for a while: it goes on, nothing is lost or doubled (T28)."""
    seconds = amount(2.0, 20.0)
    with writers(backend.path, 3, tmp_path, name="while") as clients:
        clients.begin()
        for all_of_it in amount((kind == "mysql",), (False, True)):
            clients.wait_for_more(12)
            frozen = server_of(backend) if all_of_it else [psutil.Process(backend.server)]
            signal_all(signal.SIGSTOP, reversed(frozen))
            hold(seconds)
            signal_all(signal.SIGCONT, frozen)
            clients.wait_for_more(12)
        clients.stop()
        clients.finish()
    report = report_of(clients, backend, "while")
    report.assert_exact()
    assert not report.errors
    verdict("T28", f"{kind}: server SIGSTOPped for {seconds:g} s, then continued", f"{report}")
