"""More clients than usual, and more than the server has descriptors for."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import zmq
from amounts import at_most
from curve_peers import Peer, status
from exact import check, rows_by_api, writers
from resources import is_alive, take_descriptors, usage

from balsam_core import Job, open_db
from balsam_core.errors import Unavailable
from balsam_core.proxy.protocol import StatusRequest
from balsam_core.testing.tools import wait_until

MB = 1024 * 1024
QUESTION = 7  # the number of a request
SUPPORT = Path(__file__).parents[1] / "support"
CROWD = """
import json, sys, time
import zmq
from curve_peers import Peer, call
from balsam_core.dbdir.directory import DBDir
from balsam_core.model.calls import OpenStagedInsert

path, host, port, number, name = json.loads(sys.argv[1])
db, context = DBDir.open(path), zmq.Context()
context.max_sockets = number + 10
print("ready", flush=True)
sys.stdin.readline()
began = time.monotonic()
peers = [Peer(db, (host, port), context=context) for _ in range(number)]
for i, peer in enumerate(peers):
    peer.send(call(1, OpenStagedInsert(), client=f"{name}{i:016x}", seq=1))
codes = [peer.reply(1, 60).code for peer in peers]
print(json.dumps([codes.count(""), time.monotonic() - began]), flush=True)
sys.stdin.readline()
asked = OpenStagedInsert()
again = [peer.ask(call(2, asked, client=f"{name}{i:016x}", seq=2), 60).code for i, peer in enumerate(peers)]
print(json.dumps(again.count("")), flush=True)
sys.stdin.readline()
"""


def where(served):
    return served.address.host, served.address.port


@contextmanager
def crowd(served, processes, number):
    """Processes that each open many connections when told by a line."""
    with contextlib.ExitStack() as stack:
        running = []
        for i in range(processes):
            spec = [str(served.path), *where(served), number, f"{i:016x}"]
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CROWD, json.dumps(spec)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=SUPPORT,
                )
            )
            stack.callback(process.kill)
            running.append(process)
        for process in running:
            assert process.stdout.readline() == "ready\n"
        yield running


def tell(running):
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()


def test_thousands_of_clients_are_served(served, amount, verdict):
    """Thousands of clients connect at once: all are served, memory is bounded (T26)."""
    processes, number = amount((2, 250), (8, 500))
    before = served.address
    base = usage(served.server)
    with crowd(served, processes, number) as running:
        tell(running)
        answers = [json.loads(process.stdout.readline()) for process in running]
        alone = usage(served.server)
        all_of_it = usage(served.server, tree=True)
        assert status(served.dir, where(served)).clients >= processes * number
        tell(running)
        again = sum(json.loads(process.stdout.readline()) for process in running)
    good, worst = sum(count for count, _ in answers), max(took for _, took in answers)
    wait_until(lambda: usage(served.server).fds <= base.fds, "all descriptors closed", seconds=at_most(20))
    assert good == again == processes * number
    assert worst <= at_most(30)
    assert all_of_it.rss <= 512 * MB
    assert served.address == before
    verdict(
        "T26",
        "many clients at once",
        f"{good}/{processes * number} connected, encrypted and wrote within {worst:.1f} s; RSS {alone.rss / MB:.0f} MB"
        f" (with its readers {all_of_it.rss / MB:.0f} MB)",
    )


def test_no_descriptors_left_for_a_late_import(served, verdict):
    """The server has no descriptor for the modules of its first write: an outage, not an error of its own (T25)."""
    with open_db(served.path) as db:
        assert db.jobs.count() == 0
        give_back = take_descriptors(psutil.Process(served.server))
        assert give_back is not None
        with pytest.raises(Unavailable, match="too many open files"):
            db.jobs.add(Job(name="late", command="true"))
        give_back()
        db.jobs.add(Job(name="later", command="true"))
        assert [job.name for job in db.jobs] == ["later"]
    assert served.lease.restarts == 0
    verdict("T25", "no descriptors for the server's first write", "said so, nothing was changed")


def test_no_descriptors_left(served, tmp_path, amount, verdict):
    """Clients use up the server's descriptors: those who are connected are answered, and it recovers (T25)."""
    before, most, number = served.address, 256, 400
    seconds = amount(2, 20)
    resource.prlimit(served.server, resource.RLIMIT_NOFILE, (most, most))
    base = usage(served.server).fds
    context = zmq.Context()
    context.max_sockets = number + 10
    with writers(served.path, 2, tmp_path, pause=0.05) as clients:
        clients.begin()
        wait_until(lambda: clients.acked >= 4)
        peers = [Peer(served.dir, where(served), context=context) for _ in range(number)]
        wait_until(lambda: usage(served.server).fds >= most - 2, "all descriptors used", seconds=at_most(10))
        wait_until(lambda: "can't be accepted" in log_of(served), "a warning", seconds=at_most(10))
        acked, full = clients.acked, usage(served.server)
        end = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() > end, seconds=seconds + 5)
        load = usage(served.server).load_since(full)
        for peer in peers:
            peer.send(StatusRequest(QUESTION))
        # Not the writers of all: libzmq may have dropped just those, who then wait like others.
        wait_until(
            lambda: clients.acked > acked or any(map(is_answered, peers)), "an answer to who is connected", seconds=20
        )
        lines = log_of(served).count("can't be accepted")
        for peer in peers:
            peer.close()
        context.term()
        began = time.monotonic()
        with Peer(served.dir, where(served)) as late:
            late.ask(StatusRequest(1), 10)
        took = time.monotonic() - began
        wait_until(lambda: usage(served.server).fds <= base + 2, "all descriptors closed", seconds=at_most(10))
        clients.stop()
        clients.finish()
    report = check(clients.journals, rows_by_api(served.path))
    report.assert_exact()
    assert not report.errors
    assert served.address == before
    assert is_alive(before.pid)
    assert load <= 0.25
    assert took <= at_most(5)
    assert lines <= 4 * (seconds + 10)
    verdict(
        "T25",
        f"{number} clients, {most} descriptors",
        f"{load:.1%} of a core while full, {lines} warnings in {seconds} s; a new client served {took:.2f} s after they"
        f" left; {report}",
    )


def is_answered(peer):
    while peer.socket.poll(0):
        if peer.receive().id == QUESTION:
            return True
    return False


def log_of(served):
    return "".join(file.read_text() for file in served.dir.log.glob("server_*"))
