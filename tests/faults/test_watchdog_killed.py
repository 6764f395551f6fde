"""The watchdog dies, alone or with its server, under clients that know nothing of either."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from amounts import at_most
from balsam_program import BALSAM, child
from exact import check, exact_report, rows_by_sqlite, writers
from resources import is_alive, wait_for_end
from served_db import listens

from balsam_core import Job, open_db
from balsam_core.dbdir import address
from balsam_core.errors import OutcomeUnknown, Unavailable


def test_watchdog_killed_under_writers(served, tmp_path, amount, verdict):
    """The watchdog is killed under writers: its server ends, the next start works, nothing is lost (T07)."""
    kills = amount(2, 25)
    ends, starts = [], []
    with writers(served.path, 8, tmp_path) as clients:
        clients.begin()
        for kill in range(kills):
            clients.wait_for_more(50)
            before, everybody = served.address, [process.pid for process in served.processes()]
            if kill % 5 == 1:
                os.kill(before.pid, signal.SIGSTOP)  # it can't hear that its watchdog has died
            os.kill(served.watchdog, signal.SIGKILL)
            began = time.monotonic()
            if kill % 5 != 1:
                wait_for_end(everybody, seconds=at_most(10))
                ends.append(time.monotonic() - began)
                assert not listens(before)
                assert address.read(served.dir) is None
                clients.wait_for_more(8, seconds=at_most(20))  # without a server
            began = time.monotonic()
            now = served.start()
            starts.append(time.monotonic() - began)
            assert now.generation == before.generation + 1
            assert not any(map(is_alive, everybody))
        clients.wait_for_more(50)
        clients.stop()
        clients.finish()
        journals = clients.journals
    report = exact_report(served, journals)
    assert report.longest_stall < at_most(5)
    verdict(
        "T07",
        "watchdog SIGKILLed under 8 writers",
        f"{kills} kills (every fifth with a frozen server): server and port gone within {max(ends):.2f} s, the next"
        f" start took up to {max(starts):.2f} s: {report}",
    )


def test_both_killed_and_a_stale_address(served, tmp_path, amount, verdict):
    """Watchdog and server are killed at once: clients get a clear error, the next start works without a reset (T08)."""
    rounds = amount(1, 3)
    errors, starts = [], []
    with writers(served.path, 4, tmp_path) as clients, open_db(served.path) as db:
        clients.begin()
        for number in range(rounds):
            db.jobs.count()
            clients.wait_for_more(50)
            served.kill_all()
            began = time.monotonic()
            # A new program, and one that was connected, at the same time.
            words = ["job", "--name", f"never {number}", "--command", "true", "--db", str(served.path)]
            with subprocess.Popen(
                [*BALSAM, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as program:
                with pytest.raises((Unavailable, OutcomeUnknown)) as caught:
                    db.jobs.add(Job(name=f"never {number}", command="true"))
                errors.append(time.monotonic() - began)
                out, err = program.communicate(timeout=60)
            errors.append(time.monotonic() - began)
            assert (program.returncode, out) == (Unavailable.exit_code, "")
            assert err.count("\n") == 1, err
            for line in (err, str(caught.value)):
                assert "is not there: start it with balsam dbserver --path=" in line
            began = time.monotonic()
            served.start()
            starts.append(time.monotonic() - began)
            db.jobs.add(Job(name=f"again {number}", command="true"))
            child.good("ls", db=served.path)
        clients.wait_for_more(50, seconds=at_most(20))
        clients.stop()
        clients.finish()
        journals = clients.journals
    served.stop()
    with open_db(served.path) as db:
        assert sorted(name for (name,) in db.jobs.where(workflow="default").rows("name")) == [
            f"again {number}" for number in range(rounds)
        ]
    report = check(journals, rows_by_sqlite(served.path))
    report.assert_exact()
    assert set(report.errors) <= {Unavailable.code, OutcomeUnknown.code}
    assert max(errors) <= at_most(10)
    assert max(starts) <= at_most(5)
    verdict(
        "T08",
        "watchdog and server SIGKILLed, the address is stale",
        f"{rounds} times: clear error after {min(errors):.1f} to {max(errors):.1f} s, the next start took up to"
        f" {max(starts):.2f} s, no manual reset: {report}",
    )


def test_what_is_left_of_both_is_told_and_removed_on_request(make_served, verdict):
    """Watchdog and server are killed at once: --status says so, --stop and --reset remove what they left (T08)."""
    served = make_served("left")
    for act, said in (("--stop", "had died; what it left is removed"), ("--reset", "no server")):
        served.start()
        _, before = served.kill_all()
        status = served.command("--status")
        assert status.code == 0, status
        assert "dead" in status.out
        done = served.command(act)
        assert done.code == 0, done
        assert said in done.out
        assert address.read(served.dir) is None
        assert not listens(before)
        with open_db(served.path) as db:
            db.jobs.add(Job(name=act, command="true"))
    verdict("T08", "what is left of both", "--status says dead; --stop and --reset remove it; clients use the file")
