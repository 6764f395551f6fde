"""The network between clients and server is slow, or gone for a while."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager

import msgspec
from amounts import at_most
from exact import check, exact_report, rows_by_sqlite, writers
from namespaces import cut_between, join_again, limit_rate, two_hosts
from tcp_faults import FaultyLink

from balsam_core.admin.initialise import initialise
from balsam_core.dbdir import address
from balsam_core.testing.tools import wait_until


def wait(seconds):
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, seconds=seconds + 10)


def resumption(clients, before):
    """Return the seconds until each client has been acknowledged something again."""
    began = time.monotonic()
    done = {journal: journal.read_bytes().count(b" acked ") for journal in clients.journals}
    wait_until(
        lambda: all(journal.read_bytes().count(b" acked ") > done[journal] for journal in clients.journals),
        "all clients to go on",
        seconds=60,
    )
    assert clients.acked > before
    return time.monotonic() - began


def progress(clients):
    """Wait until the clients have written a while."""
    before = clients.acked
    wait_until(lambda: clients.acked > before + 40)


def through(served, link):
    """Publish the link's port instead of the server's."""
    address.write(served.dir, msgspec.structs.replace(served.address, port=link.port))


def test_everything_is_lost_for_a_while(served, tmp_path, amount, verdict):
    """The network loses every byte for a while: clients go on within 5 s of its end, exactly once (T29)."""
    gone = amount([3], [30, 11, 19])
    taken = []
    with FaultyLink((served.address.host, served.address.port)) as link:
        through(served, link)
        with writers(served.path, 4, tmp_path, kill_every=5) as clients:
            clients.begin()
            for seconds in gone:
                progress(clients)
                link.blackhole()
                wait(seconds)
                before = clients.acked
                link.heal()
                taken.append(resumption(clients, before))
            clients.stop()
            clients.finish()
    report = exact_report(served, clients.journals)
    assert max(taken) <= at_most(5)
    verdict(
        "T29",
        f"all bytes lost for {gone} s",
        f"all of 4 clients go on {', '.join(f'{one:.1f}' for one in taken)} s after the end; {report}",
    )


@contextmanager
def served_on(host, path):
    """A server on one of the hosts."""
    host.balsam.good("dbserver", "--path", path, "--host", host.address)
    try:
        yield
    finally:
        host.balsam("dbserver", "--path", path, "--stop")


def test_slow_and_split_network(tmp_path, amount, verdict):
    """The network is slow, and split for a while: clients go on within 5 s of its end, exactly once (T29)."""
    gone = amount([4], [30, 13, 21])
    taken = []
    db = initialise(tmp_path / "db").db
    with two_hosts(tmp_path) as (alpha, beta), served_on(alpha, db.path):
        limit_rate(alpha, "1mbit")
        limit_rate(beta, "1mbit")
        with writers(db.path, 4, tmp_path, kill_every=5, wrap=beta.argv) as clients:
            clients.begin()
            for seconds in gone:
                progress(clients)
                cut_between(alpha, beta)
                wait(seconds)
                before = clients.acked
                join_again(alpha, beta)
                taken.append(resumption(clients, before))
            clients.stop()
            clients.finish()
        alpha.balsam.good("dbserver", "--path", db.path, "--stop")
        report = check(clients.journals, rows_by_sqlite(db.path))
    report.assert_exact()
    assert not report.errors
    assert max(taken) <= at_most(5)
    verdict(
        "T29",
        f"1 Mbit/s, and split for {gone} s",
        f"all of 4 clients go on {', '.join(f'{one:.1f}' for one in taken)} s after the end; {report}",
    )


def test_errors_of_a_split_network_say_what_is_known(tmp_path, verdict):
    """The network is split during a write: at the deadline its outcome is said to be unknown (T29)."""
    db = initialise(tmp_path / "db").db
    program = """
import sys, time
from balsam_core import BalsamError, Job, open_db
from balsam_core.model.calls import AddJobs
with open_db(sys.argv[1]) as db:
    db.jobs.count()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    try:
        db.transport.run(AddJobs(jobs=[Job(name="x", command="true")]), timeout=2)
    except BalsamError as err:
        print(err.code, f"{time.monotonic() - began:.1f}", err)
"""
    with two_hosts(tmp_path) as (alpha, beta), served_on(alpha, db.path):
        words = [sys.executable, "-c", program, db.path]
        import subprocess

        with beta.running(words, stdin=subprocess.PIPE) as client:
            assert client.stdout.readline() == "ready\n"
            cut_between(alpha, beta)
            client.stdin.write("\n")
            client.stdin.flush()
            code, took, *text = client.stdout.readline().split()
            join_again(alpha, beta)
    assert code == "outcome-unknown"
    assert float(took) < at_most(4)
    assert "may or may not" in " ".join(text)
    verdict("T29", "split network, a deadline of 2 s", f"{code} after {took} s")
