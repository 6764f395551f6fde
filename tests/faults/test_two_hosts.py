"""Two hosts share the DB directory: both use the one server, and it moves from one to the other."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time

import msgspec
import pytest
from amounts import at_most
from exact import check, rows_by_sqlite, writers
from resources import usage

from balsam_core.dbdir import address
from balsam_core.dbdir.directory import DBDir
from balsam_core.dbdir.lease import EXPIRY, LeaseObserver, lease_file
from balsam_core.errors import Unavailable
from balsam_core.testing.tools import wait_until

FIRST_PID = 5000  # of what starts a server: so the servers of both hosts have the same number

# Knows one server for ever, by a copy of the files that lead to it, and writes when it is told to.
PINNED = """
import sys, time
from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import BalsamError
from balsam_core import Job
from balsam_core.model.calls import AddJobs, GetInfo
from balsam_core.backends import registry

with registry.load("sqlite").open_transport(DBDir.open(sys.argv[1])) as transport:
    transport.run(GetInfo())
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit()  # not needed
    print("sending", flush=True)
    try:
        transport.run(AddJobs(jobs=[Job(name=sys.argv[2], workflow="pinned", command="true")]), timeout=60)
        print("acknowledged", flush=True)
    except BalsamError as err:
        print(err.code, flush=True)
"""


@pytest.fixture
def db(path):
    return DBDir.open(path)


def serve(host, db, *words):
    """Start the server on a host; returns what the command said."""
    return host.balsam.good("dbserver", "--path", db.path, *words).out


def refused(host, *words):
    """Run a command that must fail with one line; returns that and the seconds."""
    began = time.monotonic()
    line = host.balsam.refused(*words, code=Unavailable.exit_code)
    return line, time.monotonic() - began


def stored(db, workflow):
    """Return the names of the stored jobs of a workflow."""
    with contextlib.closing(sqlite3.connect(db.path / "db.sqlite3")) as connection:
        found = connection.execute(
            "SELECT jobs.name FROM jobs JOIN workflows ON workflows.id = jobs.workflow_id WHERE workflows.name = ?",
            [workflow],
        )
        return sorted(name for (name,) in found)


def epoch_of(db):
    """Return the number of the server that may write, from the database itself."""
    with contextlib.closing(sqlite3.connect(db.path / "db.sqlite3")) as connection:
        return int(connection.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0])


def number_processes(host):
    """Let the numbers of the next processes of a host begin at a certain one, where that is allowed."""
    host.run(["sh", "-c", f"echo {FIRST_PID} > /proc/sys/kernel/ns_last_pid"])


def runs(host, pid):
    """Say whether a process of a host, by its number there, has not ended."""
    state = host.run(["cat", f"/proc/{pid}/stat"]).stdout
    return bool(state) and state.rpartition(")")[2].split()[0] != "Z"


def test_programs_on_another_host_use_the_server(hosts, db, tmp_path, amount, verdict):
    """With the command line and Python; a server that listens on its own host only is reported with the remedy."""
    alpha, beta = hosts
    serve(alpha, db)
    line, seconds = refused(beta, "ls", "--db", db.path)
    assert "listens only on its own host, alpha, and this is another one" in line
    assert "balsam dbserver --host 0.0.0.0" in line
    assert seconds <= at_most(5)
    beta.balsam.good("dbserver", "--stop", "--path", db.path)  # of a server elsewhere
    assert "10.77.0.1" in serve(alpha, db, "--host", alpha.address)
    beta.balsam.good("job", "--name", "from beta", "--command", "true", "--db", db.path)
    assert "from beta" in alpha.balsam.good("ls", "--db", db.path).out
    assert "from beta" in beta.balsam.good("ls", "--db", db.path).out
    assert "10.77.0.1" in beta.balsam.good("status", "--db", db.path).out
    count = amount(40, 1000)
    with (
        writers(db.path, 4, tmp_path, count=count, name="a", wrap=alpha.argv) as there,
        writers(db.path, 4, tmp_path, count=count, name="b", wrap=beta.argv) as here,
    ):
        there.begin()
        here.begin()
        assert "10.77.0.1" in serve(beta, db), "one runs already"
        for clients in (there, here):
            clients.finish()
        journals = [*there.journals, *here.journals]
    beta.balsam.good("dbserver", "--stop", "--path", db.path)
    assert address.read(db) is None
    report = check(journals, rows_by_sqlite(db.path))
    report.assert_exact()
    assert not report.errors
    verdict(
        "S06",
        "clients on another host",
        f"CLI and API work from there, loopback address: clear error after {seconds:.1f} s: {report}",
    )


class Pinned:
    """A client on a host that stays with one server, whatever is published."""

    def __init__(self, stack, host, db, directory, name):
        directory.mkdir()
        (directory / "balsam.toml").write_bytes(db.config_file.read_bytes())
        # Without the mark of its directory, by which a copy is known.
        address.write(DBDir.open(directory), msgspec.structs.replace(address.read(db), directory=0))
        (directory / "keys").mkdir(mode=0o700)
        key = directory / "keys" / "client.key"
        key.touch(mode=0o600)
        key.write_bytes((db.keys / "client.key").read_bytes())
        command = [sys.executable, "-c", PINNED, directory, name]
        self.process = stack.enter_context(host.running(command, stdin=subprocess.PIPE))
        assert self.process.stdout.readline() == "ready\n"

    def send(self):
        """Let it send its write."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "sending\n"


def grow_old(db):
    """Let the time until the lease has expired be over."""
    moment = time.time() - EXPIRY - 1
    os.utime(lease_file(db), (moment, moment))


def wait_for_end_on(host, pid):
    """Wait until a process of a host has ended."""
    wait_until(lambda: not runs(host, pid), f"the end of process {pid} on {host.name}", seconds=at_most(10))


def take_over(old, new, db, tmp_path, name, *, orphaned, patient):
    """Freeze the server of one host, serve on the other one, and wake the first up.

    Args:
        old: Where the server runs.
        new: Where it shall run.
        db: The DB.
        tmp_path: For journals and keys.
        name: Beginning of the names of all that is written.
        orphaned: Whether the old server wakes up without its watchdog; else it meets a request before that wakes up.
        patient: Whether to wait until the lease has expired, and not to change its time.

    Returns:
        The journals, the seconds until clients were served, and whether both servers had the same process id.
    """
    published, lease = address.read(db), LeaseObserver(db).observe().lease
    assert published.node == old.name
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(writers(db.path, 2, tmp_path, count=20, name=f"{name}-o", wrap=old.argv))
        before.begin()
        before.finish()
        pinned = Pinned(stack, old, db, tmp_path / f"{name}-pinned", f"{name}-too-late")
        after = stack.enter_context(writers(db.path, 4, tmp_path, name=f"{name}-n", wrap=new.argv))
        for pid in (lease.pid, published.pid):
            old.signal(pid, "STOP")
        if not orphaned:
            pinned.send()
        after.begin()  # they wait for the old one's answer
        pids = [process.pid for process in after.processes]
        wait_until(lambda: usage(*pids, tree=True).threads >= 16, "connected clients", seconds=at_most(10))
        if not patient:
            grow_old(db)
        began = time.monotonic()
        number_processes(new)
        serve(new, db, "--host", new.address)
        now = address.read(db)
        assert now.generation == published.generation + 1
        after.wait_for_more(20, seconds=at_most(5))
        seconds = time.monotonic() - began
        if orphaned:
            old.signal(lease.pid, "KILL")
        old.signal(published.pid, "CONT")
        wait_for_end_on(old, published.pid)
        if not orphaned:
            old.signal(lease.pid, "CONT")
        wait_for_end_on(old, lease.pid)
        assert address.read(db) == now
        after.wait_for_more(20, seconds=at_most(5))
        after.stop()
        after.finish()
    assert epoch_of(db) == now.generation
    assert stored(db, "pinned") == []
    return [*before.journals, *after.journals], seconds, now.pid == published.pid


def test_server_stopped_on_one_host_and_taken_over_by_the_other(hosts, db, tmp_path, amount, verdict):
    """A frozen server is taken over by another host and wakes up: it is fenced, nothing is lost (T12)."""
    rounds, patient = amount(2, 6), amount(False, True)
    alpha, beta = hosts
    number_processes(alpha)
    serve(alpha, db, "--host", alpha.address)
    journals, seconds, same = [], [], 0
    for turn in range(rounds):
        old, new = hosts if turn % 2 == 0 else hosts[::-1]
        made, took, equal = take_over(old, new, db, tmp_path, f"t{turn}", orphaned=turn % 2 == 0, patient=patient)
        journals += made
        seconds.append(took)
        same += equal
    beta.balsam.good("dbserver", "--stop", "--path", db.path)
    log = "".join(file.read_text() for file in db.log.glob("server_*.log"))
    fenced = log.count("another server has taken over this DB")
    assert fenced == rounds // 2
    report = check(journals, rows_by_sqlite(db.path))
    report.assert_exact()
    assert not report.errors
    verdict(
        "T12",
        "two hosts, honest locks: old server and watchdog SIGSTOPped, other host took over, then CONT",
        f"{rounds} times ({same} with equal process ids): 0 commits by the old epoch; {fenced} met a request and were"
        f" fenced by the epoch row, the others had lost their watchdog and ended; served by the other host within"
        f" {max(seconds):.1f} s{'' if patient else ' of the expiry'}: {report}",
    )


def test_host_lost_with_its_server(hosts, db, tmp_path, amount, verdict):
    """A whole host is lost with its server: the other one takes over, nothing is lost or doubled (T12)."""
    alpha, beta = hosts
    serve(alpha, db, "--host", alpha.address)
    with writers(db.path, 4, tmp_path, wrap=beta.argv) as clients:
        clients.begin()
        clients.wait_for_more(100)
        alpha.crash()
        if amount(True, False):
            grow_old(db)
        began = time.monotonic()
        serve(beta, db)  # the link went with the other host
        clients.wait_for_more(50, seconds=at_most(5))
        seconds = time.monotonic() - began
        clients.stop()
        clients.finish()
        journals = clients.journals
    beta.balsam.good("dbserver", "--stop", "--path", db.path)
    report = check(journals, rows_by_sqlite(db.path))
    report.assert_exact()
    assert set(report.errors) <= {Unavailable.code, "outcome-unknown"}
    verdict("T12", "host lost with its server", f"the other host served after {seconds:.1f} s: {report}")
