"""PostgreSQL's and MariaDB's servers die, or their connections break, under clients: nothing is lost, none doubled."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from functools import partial

import msgspec
import psutil
from amounts import at_most
from backend_dbs import report_of
from exact import writers
from shims import SlowFsync, preload
from tcp_faults import FaultyLink

from balsam_core import BalsamError, Job, open_db
from balsam_core.dbdir import address
from balsam_core.errors import OutcomeUnknown, ServerNotRunning
from balsam_core.testing.tools import wait_until


def one_of_many(served):
    """Return one of PostgreSQL's processes for clients."""
    return random.choice(
        [one for one in psutil.Process(served.server).children() if "balsam balsam" in " ".join(one.cmdline())]
    )


def end(served, turn):
    """End the server, mostly by SIGKILL."""
    before = served.address
    number = signal.SIGABRT if turn % 8 == 3 else signal.SIGTERM if turn % 8 == 6 else signal.SIGKILL
    if number == signal.SIGTERM and served.dir.db_type == "postgres":
        number = signal.SIGQUIT  # SIGTERM would let it wait for its clients to leave
    os.kill(before.pid, number)
    served.wait_for_another(before)


def test_server_killed_at_random(backend, kind, tmp_path, amount, verdict):
    """The server, or one of its processes, is killed at random under writers: no write is lost or doubled (T01)."""
    kills, number = amount((4, 4), (50, 16))
    chance = random.Random(1)
    with writers(backend.path, number, tmp_path, name="killed", kill_every=7) as clients:
        clients.begin()
        clients.wait_for_more(number)
        for turn in range(kills):
            time.sleep(chance.uniform(0.3, 1.5))
            if kind == "postgres" and turn % 4 == 2:
                one_of_many(backend).kill()  # the main process stays, and ends all the others
                clients.wait_for_more(number)
                continue
            if kind == "postgres" and turn % 4 == 1:
                one_of_many(backend).suspend()  # outlives the main process, and would keep the next one out
            end(backend, turn)
        clients.wait_for_more(number)
        clients.stop()
        clients.finish()
    report = report_of(clients, backend, "killed")
    report.assert_exact()
    assert not report.errors
    assert report.longest_stall < at_most(5)  # other tests' programs may have the processor meanwhile
    verdict("T01", f"{kind}: server SIGKILLed under {number} writers", f"{kills} kills: {report}")


def through(served, link):
    """Publish the link's port instead of the server's."""
    address.write(served.dir, msgspec.structs.replace(served.address, port=link.port))


def test_connections_cut_at_random(backend, kind, tmp_path, amount, verdict):
    """Connections are cut at random, also after a request and before its answer: no write is lost or doubled (T03)."""
    cuts, number = amount((8, 3), (100, 16))
    chance = random.Random(2)
    real = backend.address
    try:
        with FaultyLink((real.host, real.port)) as link:
            through(backend, link)
            with writers(backend.path, number, tmp_path, name="cut", kill_every=7) as clients:
                clients.begin()
                clients.wait_for_more(number)
                for turn in range(cuts):
                    if turn % 2:
                        link.lose_replies()  # what has been sent, a COMMIT too, is carried out
                        time.sleep(chance.uniform(0.0, 0.05))
                    link.refuse()  # nobody connects while replies are lost, whose greeting would never come
                    link.heal()
                    time.sleep(chance.uniform(0.0, 0.3))
                    clients.wait_for_more(number)
                clients.stop()
                clients.finish()
    finally:
        address.write(backend.dir, real)
    report = report_of(clients, backend, "cut")
    report.assert_exact()
    assert not report.errors
    assert report.longest_stall < at_most(5)
    verdict("T03", f"{kind}: connections cut under {number} writers", f"{cuts} times: {report}")


def test_repeated_while_the_first_commit_is_in_flight(make_backend, kind, tmp_path, amount, verdict):
    """The connection is cut while the server is inside COMMIT, and the client sends the write again."""
    rounds, seconds = amount(1, 25), 1.5
    disk = SlowFsync(tmp_path)
    served = make_backend("inflight", env=preload(disk))
    real = served.start()
    overlaps, answers = 0, []
    with FaultyLink((real.host, real.port)) as link:
        through(served, link)
        with open_db(served.path) as db:
            for turn in range(rounds):
                db.jobs.add(Job(name=f"before{turn}", command="true"))
                adding = threading.Thread(
                    target=lambda name=f"slow{turn}": answers.append(db.jobs.add(Job(name=name, command="true"))[0])
                )
                seen = link.to_server.passed
                disk.set(seconds)
                adding.start()
                # BEGIN, statements and COMMIT are there, and no answer comes: it waits for the disk.
                wait_until(partial(silent, link, seen), "the COMMIT", seconds=at_most(30))
                link.reset()
                cut = time.monotonic()
                wait_until(lambda: link.connections, "another connection", seconds=at_most(10))
                overlaps += time.monotonic() - cut < seconds / 2
                disk.off()  # what waits goes on waiting
                adding.join(30)
                assert not adding.is_alive()
        address.write(served.dir, real)
        with open_db(served.path) as db:
            stored = {row.name: row.id for row in db.jobs}
            assert db.jobs.count() == 2 * rounds
    assert [stored[f"slow{turn}"] for turn in range(rounds)] == answers
    assert overlaps >= rounds / 2
    assert disk.hits >= rounds
    verdict(
        "T03",
        f"{kind}: write repeated while its first COMMIT is in flight",
        f"{rounds} times, {overlaps} of them the second sending met the first: applied once, same answer",
    )


def test_write_in_flight_when_the_server_ends_for_good(make_backend, kind, tmp_path, verdict):
    """Nobody can find out whether the write was applied, so no error may say that nothing was changed."""
    disk = SlowFsync(tmp_path)
    served = make_backend("ended", env=preload(disk))
    real = served.start()
    errors = []

    def add(db):
        try:
            db.jobs.add(Job(name="open", command="true"))
        except BalsamError as err:
            errors.append(err)

    with FaultyLink((real.host, real.port)) as link:
        through(served, link)
        with open_db(served.path) as db:
            db.jobs.add(Job(name="before", command="true"))
            adding = threading.Thread(target=add, args=(db,))
            seen = link.to_server.passed
            disk.set(3.0)
            adding.start()
            wait_until(partial(silent, link, seen), "the COMMIT", seconds=at_most(30))
            address.withdraw(served.dir)
            link.refuse()
            adding.join(30)
            disk.off()
            (error,) = errors
            unknown = type(error) is OutcomeUnknown
            # MariaDB's slow log may hold up a statement before the COMMIT: then it is known that nothing was changed.
            assert unknown or (kind == "mysql" and type(error) is ServerNotRunning)
            assert ("may or may not" in str(error)) is unknown
            assert "start it with balsam dbserver" in str(error)
        served.kill_all()
    served.start()
    with open_db(served.path) as db:
        assert db.jobs.where(name="before").count() == 1
        assert db.jobs.where(name="open").count() <= unknown
    verdict("T03", f"{kind}: server ends for good amid a COMMIT", "outcome-unknown, with the way to start it again")


def silent(link, seen):
    """Say whether the client has sent something and waits for an answer that has not come for a while."""
    if link.to_server.passed - seen < 4:
        return False
    counts = link.to_server.passed, link.to_clients.passed
    time.sleep(0.3)
    return counts == (link.to_server.passed, link.to_clients.passed)
