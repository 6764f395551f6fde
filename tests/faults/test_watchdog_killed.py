"""The watchdog dies, alone or with its server, under clients that know nothing of either."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from balsam_program import child
from exact import check, rows_by_sqlite, writers
from resources import is_alive
from waiting import wait_until

from balsam_core import Job, open_db
from balsam_core.dbdir import address
from balsam_core.errors import OutcomeUnknown, Unavailable


def listens(where):
    """Say whether anybody accepts connections there."""
    try:
        socket.create_connection((where.host, where.port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def processes_of(served):
    """Return the process ids of the watchdog, the server and its readers."""
    server = served.server
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(server)], capture_output=True, text=True, check=False)
    return [served.watchdog, server, *map(int, children.stdout.split())]


def wait_for_end(pids):
    """Wait until none of these processes runs."""
    wait_until(lambda: not any(map(is_alive, pids)), "the end of watchdog and server", seconds=10)


def kill_both(served):
    """SIGKILL watchdog and server so that neither sees the other's end; returns the address that stays behind."""
    before, watchdog = served.address, served.watchdog
    os.kill(watchdog, signal.SIGSTOP)
    os.kill(before.pid, signal.SIGKILL)
    os.kill(watchdog, signal.SIGKILL)
    wait_for_end([before.pid, watchdog])
    return before


def test_watchdog_killed_under_writers(served, tmp_path, amount, verdict):
    """T07."""
    kills = amount(2, 25)
    ends, starts = [], []
    with writers(served.path, 8, tmp_path) as clients:
        clients.begin()
        for kill in range(kills):
            clients.wait_for_more(50)
            before, everybody = served.address, processes_of(served)
            if kill % 5 == 1:
                os.kill(before.pid, signal.SIGSTOP)  # it can't hear that its watchdog has died
            os.kill(served.watchdog, signal.SIGKILL)
            began = time.monotonic()
            if kill % 5 != 1:
                wait_for_end(everybody)
                ends.append(time.monotonic() - began)
                assert not listens(before)
                assert address.read(served.dir) is None
                clients.wait_for_more(8, seconds=20)  # without a server
            began = time.monotonic()
            now = served.start()
            starts.append(time.monotonic() - began)
            assert now.generation == before.generation + 1
            assert not any(map(is_alive, everybody))
        clients.wait_for_more(50)
        clients.stop()
        clients.finish()
        journals = clients.journals
    served.stop()
    report = check(journals, rows_by_sqlite(served.path))
    report.assert_exact()
    assert not report.errors
    assert report.longest_stall < 5
    verdict(
        "T07",
        "watchdog SIGKILLed under 8 writers",
        f"{kills} kills (every fifth with a frozen server): server and port gone within {max(ends):.2f} s, the next"
        f" start took up to {max(starts):.2f} s: {report}",
    )


def test_both_killed_and_a_stale_address(served, tmp_path, amount, verdict):
    """T08."""
    rounds = amount(1, 3)
    errors, starts = [], []
    with writers(served.path, 4, tmp_path) as clients, open_db(served.path) as db:
        clients.begin()
        for number in range(rounds):
            db.jobs.count()
            clients.wait_for_more(50)
            kill_both(served)
            began = time.monotonic()
            # A new program, and one that was connected, at the same time.
            words = ["job", "--name", f"never {number}", "--command", "true", "--db", str(served.path)]
            with subprocess.Popen(
                [sys.executable, "-m", "balsam_core.cli", *words],
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
        clients.wait_for_more(50, seconds=20)
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
    assert max(errors) <= 10
    assert max(starts) <= 5
    verdict(
        "T08",
        "watchdog and server SIGKILLed, the address is stale",
        f"{rounds} times: clear error after {min(errors):.1f} to {max(errors):.1f} s, the next start took up to"
        f" {max(starts):.2f} s, no manual reset: {report}",
    )


def test_what_is_left_of_both_is_told_and_removed_on_request(make_served, verdict):
    """T08: --status, --stop and --reset after both were killed."""
    served = make_served("left")
    for act, said in (("--stop", "had died; what it left is removed"), ("--reset", "no server")):
        served.start()
        before = kill_both(served)
        status = served.command("--status")
        assert status.returncode == 0, status.stderr
        assert "dead" in status.stdout
        done = served.command(act)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert address.read(served.dir) is None
        assert not listens(before)
        with open_db(served.path) as db:
            db.jobs.add(Job(name=act, command="true"))
    verdict("T08", "what is left of both", "--status says dead; --stop and --reset remove it; clients use the file")
