"""Clients die while they send: what they wrote is there whole, or not at all."""

from __future__ import annotations

import random
import subprocess
import sys
import time

from exact import exact_report, rows_by_sqlite, writers

from balsam_core import open_db
from balsam_core.model.calls import MOST_JOBS
from balsam_core.testing.tools import wait_until

BATCH = 3 * MOST_JOBS + 500

ADD_MANY = f"""
import sys
from balsam_core import Job, open_db

def say(word):
    sys.stdout.write(word + "\\n")
    sys.stdout.flush()

def jobs():
    for n in range({BATCH}):
        if n == {BATCH - 1} and sys.argv[3] == "wait":
            say("amid")
            sys.stdin.read()
        yield Job(name=f"many-{{n}}", command="true", workflow=sys.argv[2])

with open_db(sys.argv[1]) as db:
    say("ready")
    db.jobs.add(jobs())
"""


def test_clients_killed_while_they_send(served, tmp_path, amount, verdict):
    """Clients are killed while they send: the server lives on, what was acknowledged is stored once (T06)."""
    rounds, number = amount((1, 10), (13, 16))
    chance = random.Random(6)
    journals, kills = [], 0
    for n in range(rounds):
        with writers(served.path, number, tmp_path, name=f"r{n}w") as clients:
            clients.begin()
            clients.wait_for_more(number)
            for process in clients.processes:
                time.sleep(chance.uniform(0, 0.05))
                process.kill()
                kills += 1
            clients.finish()
            journals += clients.journals
    assert served.lease.restarts == 0
    report = exact_report(served, journals)
    assert report.open > 0
    verdict("T06", "client SIGKILLed while it sends", f"{kills} kills: {report}")


def wait_for_calls(db, client, before, wanted):
    """Wait until the server has answered so many of the client's calls, or the client has ended."""
    looks = 1
    while client.poll() is None and db.transport.server_status().calls - before - looks < wanted:
        looks += 1


def test_clients_killed_amid_a_large_batch(served, amount, verdict):
    """Clients are killed amid an insert of many calls: all of it is there or nothing (T06)."""
    kills = amount(3, 25)
    chance = random.Random(66)
    seen = {"absent": 0, "whole": 0}
    with open_db(served.path) as db:
        for n in range(kills):
            workflow = f"flow{n}"
            before = db.transport.server_status().calls
            # Every third at a known place: three parts are stored, the last one isn't sent.
            argv = [sys.executable, "-c", ADD_MANY, served.path, workflow, "go" if n % 3 else "wait"]
            with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
                assert client.stdout.readline() == "ready\n"
                if n % 3:
                    # Calls: the greeting, the batch's opening, four parts, the publication, the promotion.
                    wait_for_calls(db, client, before, chance.randint(2, 8))
                else:
                    assert client.stdout.readline() == "amid\n"
                client.kill()
            wait_until(lambda: db.transport.server_status().clients == 1, "the end of the client's connection")
            db.jobs.where(id=0).kill()  # a write behind all of its
            found = db.jobs.where(workflow=workflow).count()
            assert found in {0, BATCH}
            seen["whole" if found else "absent"] += 1
            assert sum(db.jobs.where(workflow=workflow).states().values()) == found
        assert db.jobs.count() == seen["whole"] * BATCH
    assert seen["absent"] >= kills // 3
    served.stop()
    rows_by_sqlite(served.path)
    verdict("T06", f"client SIGKILLed amid a batch of {BATCH} jobs", f"{kills} kills: {seen}, none in part")
