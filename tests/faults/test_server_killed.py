"""The server, or its watchdog, dies under its clients, at random moments and at chosen ones."""

from __future__ import annotations

import random
import signal
import time

import pytest
from amounts import at_most
from exact import check, exact_report, rows_by_sqlite, writers

from balsam_core import Job, open_db
from balsam_core.dbdir import address
from balsam_core.system.processes import is_alive
from balsam_core.testing.tools import wait_until


def test_server_killed_at_random(served, tmp_path, amount, verdict):
    """The server is killed at random under writers: no write is lost or doubled (T01)."""
    kills, number = amount((3, 8), (200, 16))
    chance = random.Random(1)
    with writers(served.path, number, tmp_path) as clients:
        clients.begin()
        for _ in range(kills):
            time.sleep(chance.uniform(0.3, 1.5))
            served.wait_for_another(served.kill_server())
        clients.stop()
        clients.finish()
        journals = clients.journals
    report = exact_report(served, journals)
    assert report.longest_stall < at_most(5)
    verdict("T01", f"server SIGKILLed under {number} writers", f"{kills} kills: {report}")


@pytest.mark.parametrize("point", ["before_commit", "after_commit"])
def test_server_dies_beside_the_commit(make_served, tmp_path, amount, verdict, point):
    """The server dies right before or after a COMMIT: no write is lost or doubled (T02)."""
    crashes, number = amount((2, 6), (25, 16))
    served = make_served(env={"BALSAM_FAILPOINT": f"{point}:8"})
    served.start()
    with writers(served.path, number, tmp_path) as clients:
        clients.begin()
        wait_until(
            lambda: (a := address.read(served.dir)) and a.generation > crashes, f"{crashes} crashes", seconds=300
        )
        clients.stop()
        clients.finish()
        journals = clients.journals
    report = exact_report(served, journals)
    assert report.longest_stall < at_most(5)
    log = "".join(path.read_text() for path in served.dir.log.glob("dbserver_*.log"))
    assert log.count(f"was ended by {signal.SIGKILL.name}") >= crashes
    verdict("T02", f"server dies {point.replace('_', ' ')}", f"{crashes} crashes: {report}")


def kill_server_and_watchdog(served):
    """Kill the server; wait until the watchdog has died while it replaced it."""
    lease = served.lease
    served.kill_server()
    wait_until(lambda: not is_alive(lease.pid, lease.start), "the watchdog's end")


@pytest.mark.parametrize("point", ["before_publish", "after_publish"])
def test_watchdog_dies_beside_the_publication(make_served, tmp_path, amount, verdict, point):
    """The watchdog dies right before or after publishing: the next start works, nothing is lost (T02)."""
    rounds = amount(range(1) if point == "after_publish" else range(1, 2), range(25))
    served = make_served()
    worst = 0.0
    with writers(served.path, 4, tmp_path, pause=0.005) as clients:
        clients.begin()
        for number in rounds:
            if number % 2:  # at the first publication, seen by whoever starts the server
                done = served.command(env={"BALSAM_FAILPOINT": f"{point}:1"})
                assert done.error.startswith("the watchdog of ")
            else:  # at the second one, after the server was killed
                done = served.command(env={"BALSAM_FAILPOINT": f"{point}:2"})
                assert done.code == 0, done
                kill_server_and_watchdog(served)
            served.start()
            worst = max(worst, clients.wait_for_more(8))
            served.stop()
        clients.stop()
        clients.finish()
        journals = clients.journals
    report = check(journals, rows_by_sqlite(served.path))
    report.assert_exact()
    assert not report.errors
    assert max(worst, report.longest_stall) < at_most(5)
    verdict(
        "T02", f"watchdog dies {point.replace('_', ' ')}", f"{len(rounds)} crashes, resumed in {worst:.1f} s: {report}"
    )


def test_server_notices_writes_past_it(served, verdict):
    """Others write to the file while the server is being stopped: it notices, and every write takes effect (T02).

    When a server stops, its address is withdrawn first; its last writes may then meet writes of direct clients.
    """
    published = served.address
    with open_db(served.path) as db, open_db(served.path) as late:
        ids = [*db.jobs.add(Job(name="served", command="true", workflow="a"))]
        ids += late.jobs.add(Job(name="served too", command="true", workflow="b"))
        address.withdraw(served.dir)
        ids += db.jobs.add([Job(name=f"direct{n}", command="true", workflow="c") for n in range(2)])
        address.write(served.dir, published)
        ids += late.jobs.add([Job(name=f"late{n}", command="true", workflow="c") for n in range(3)])
        assert ids == [1, 2, 3, 4, 5, 6, 7]
        assert sorted(db.jobs.ids()) == ids
        assert db.jobs.where(workflow="c").count() == 5
    verdict("T02", "writes past a server that is being stopped", "noticed in its next transaction: nothing refused")
