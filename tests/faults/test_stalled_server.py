"""A server that stands still is replaced; one that works hard is left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time

from amounts import at_most
from exact import exact_report, writers
from resources import is_alive

from balsam_core import Job, open_db

BUSY = """
    CREATE TRIGGER toil AFTER INSERT ON jobs WHEN NEW.name = 'toil'
    BEGIN
        SELECT (
            WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {steps})
            SELECT count(*) FROM numbers
        );
    END
"""


def toil(served, least, took):
    """Add jobs, each of which keeps the server's only writer in one transaction, until one took long enough."""
    served.start()
    file = served.path / "db.sqlite3"
    steps = 4_000_000.0  # about a second: to find out how many are needed
    with open_db(served.path) as db, contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        while not took or took[-1] < least:
            connection.execute("DROP TRIGGER IF EXISTS toil")
            connection.execute(BUSY.format(steps=int(steps)))
            began = time.monotonic()
            db.jobs.add(Job(name="toil", command="true"))
            took.append(time.monotonic() - began)
            steps *= 1.3 * least / took[-1]


def test_frozen_server_is_replaced_and_busy_one_is_not(make_served, tmp_path, amount, verdict):
    """A server is frozen: it is replaced, nothing is lost; one that is only busy is not replaced (T28)."""
    rounds = amount(1, 5)
    frozen, busy = make_served("frozen"), make_served("busy")
    frozen.start()
    toiled: list[float] = []
    toiling = threading.Thread(target=toil, args=(busy, amount(10.5, 60.0), toiled))
    toiling.start()
    acted = []
    with writers(frozen.path, 8, tmp_path) as clients:
        clients.begin()
        for _ in range(rounds):
            clients.wait_for_more(100)
            before = frozen.address
            os.kill(before.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            frozen.wait_for_another(before, seconds=at_most(20))
            acted.append(time.monotonic() - stopped)
            with contextlib.suppress(ProcessLookupError):
                os.kill(before.pid, signal.SIGCONT)
            assert not is_alive(before.pid)
        clients.wait_for_more(100)
        clients.stop()
        clients.finish()
        journals = clients.journals
    report = exact_report(frozen, journals)
    assert max(acted) <= at_most(15)
    toiling.join()
    assert (busy.address.generation, busy.lease.restarts) == (1, 0)
    with open_db(busy.path) as db:
        assert [name for (name,) in db.jobs.rows("name")] == ["toil"] * len(toiled)
    verdict(
        "T28",
        "server SIGSTOPped under 8 writers",
        f"{rounds} times: replaced after {min(acted):.1f} to {max(acted):.1f} s: {report}",
    )
    verdict(
        "T28", "server busy with one transaction", f"for {max(toiled):.1f} s of silence: left alone, and it answered"
    )


def test_stopped_for_a_moment_and_continued(served, tmp_path, amount, verdict):
    """The server is frozen for less than the watchdog waits: it isn't replaced, nothing is lost (T28)."""
    seconds, rounds = amount(1.0, 7.0), amount(1, 5)
    before = served.address
    with writers(served.path, 8, tmp_path) as clients:
        clients.begin()
        for _ in range(rounds):
            clients.wait_for_more(100)
            os.kill(before.pid, signal.SIGSTOP)
            moment = time.monotonic() + seconds
            while time.monotonic() < moment:
                time.sleep(0.05)
            os.kill(before.pid, signal.SIGCONT)
            clients.wait_for_more(100, seconds=at_most(5))
        clients.stop()
        clients.finish()
        journals = clients.journals
    assert served.address == before
    report = exact_report(served, journals)
    verdict("T28", "server SIGSTOPped and continued", f"{rounds} times {seconds:g} s: not replaced: {report}")
