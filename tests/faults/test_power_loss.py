"""What is acknowledged is on disk: system calls in order, the power cut at any moment, disks that report errors."""

from __future__ import annotations

import contextlib
import errno
import threading

import psutil
import pytest
from amounts import at_most
from exact import check, exact_report, rows_by_api, rows_by_sqlite, writers
from served_db import ServedDB
from shims import FailIO, PowerLoss, preload
from strace_check import RECEIVES, audit_answers, recorded

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.dbdir.directory import DBDir
from balsam_core.testing.tools import wait_until

REQUEST = 100  # bytes at least, encrypted; two heartbeats have 82


def trace_of(served, tmp_path, clients, count):
    """Record the server's system calls while clients write, and judge its answers."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_db(served.path)) for _ in range(clients)]
        for db in opened:
            db.jobs.count()  # connected, and answered
        process, server = psutil.Process(), served.address.port
        ports = {one.laddr.port for one in process.net_connections("tcp") if one.raddr and one.raddr.port == server}
        assert len(ports) == clients

        def write(number, db):
            for n in range(count):
                db.jobs.add(Job(name=f"{number}-{n}", command="true"))

        threads = [threading.Thread(target=write, args=one) for one in enumerate(opened)]
        with recorded(served.server, tmp_path / f"trace{clients}") as trace:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=600)
        for db in opened:
            assert db.jobs.count() == clients * count
        assert {one.laddr.port for one in process.net_connections("tcp")} >= ports, "a client has connected again"
    return audit_answers(calls_about(trace.calls(), ports), log="db.sqlite3-wal")


def calls_about(calls, ports):
    """Leave out what the watchdog asks, and heartbeats that arrive together, which look like a request."""
    for call in calls:
        if call.file.startswith("TCP"):
            heartbeats = call.name in RECEIVES and not call.begins and 0 < call.result < REQUEST
            if heartbeats or int(call.file.rpartition(":")[2].rstrip("]")) not in ports:
                continue
        yield call


def test_no_answer_before_the_log_is_on_disk(make_served, tmp_path, amount, verdict):
    """The server's system calls are recorded: no write is answered before its log is forced to disk (T04)."""
    audits = {}
    for clients, count in amount([(1, 60)], [(1, 1000), (8, 300)]):
        served = make_served(f"db{clients}")
        served.start()
        audits[clients] = audit = trace_of(served, tmp_path, clients, count)
        served.stop()
        assert audit.violations == []
        assert audit.answers >= clients * (count - 1)  # the last may be on its way when the recording ends
    said = ", ".join(f"{n} clients: {a.answers} answers, {a.syncs} syncs, 0 too early" for n, a in audits.items())
    verdict("T04", "answer before fsync", said)


@pytest.fixture
def cuttable(tmp_path):
    """``cuttable(durability)``: a DB, not yet served, and the power that can be cut."""
    made = []

    def make(durability="full", *shims):
        path = tmp_path / f"db-{durability}"
        initialise(path, options={"durability": durability})
        power = PowerLoss(tmp_path, path)
        made.append(ServedDB(path, preload(power, *shims)))
        return made[-1], power

    yield make
    for one in made:
        one.close()


def cut_and_check(power, clients, tmp_path, number):
    """Cut the power under running programs; compare what clients had been told with what the disk has."""
    snapshot = clients.snapshot(tmp_path / f"journals{number}")
    target = tmp_path / f"cut{number}"
    power.cut(target, keep="something" if number % 2 else "nothing", seed=number)
    return check(snapshot, rows_by_sqlite(target), ended=False)


def test_power_cut_at_any_moment(cuttable, tmp_path, amount, verdict):
    """The power is cut at any moment under writers: what was acknowledged is on the disk, once (T05)."""
    cuts, number = amount((4, 4), (50, 16))
    served, power = cuttable()
    served.start()
    with writers(served.path, number, tmp_path) as clients:
        clients.begin()
        for n in range(cuts):
            clients.wait_for_more(20)
            cut_and_check(power, clients, tmp_path, n).assert_exact()
        # At last all die, and a server starts on what the disk has.
        for process in clients.processes:
            process.kill()
        clients.finish()
        journals = clients.journals
    served.kill_all()
    power.cut(tmp_path / "after", keep="something", seed=cuts)
    served.path, served.dir = tmp_path / "after", DBDir.open(tmp_path / "after")
    served.start()
    report = check(journals, rows_by_api(served.path))
    report.assert_exact()
    verdict("T05", f"power cut under {number} writers", f"{cuts + 1} cuts, the last one with a restart: {report}")


def test_power_cut_with_relaxed_durability_loses_and_is_found_out(cuttable, tmp_path, amount, verdict):
    """The power is cut with relaxed durability: the last writes are lost, the file is consistent (T05)."""
    served, power = cuttable("relaxed")
    served.start()
    lost = []
    with writers(served.path, 2, tmp_path) as clients:
        clients.begin()
        for n in range(amount(2, 10)):
            clients.wait_for_more(20)
            report = cut_and_check(power, clients, tmp_path, n)  # consistent all the same
            assert set(report.faults) <= {"lost", "killed_wrongly"}
            lost.append(len(report.lost))
        clients.stop()
        clients.finish()
    assert sum(lost) > 0
    verdict("T05", "power cut with durability=relaxed", f"{len(lost)} cuts lost {lost} writes, the file consistent")


@pytest.mark.parametrize(("what", "every"), [("fsync", 12), ("write", 400)])
def test_disk_that_reports_errors(cuttable, tmp_path, amount, verdict, what, every):
    """The disk reports errors to the server: it is replaced, no write is lost or doubled (T16)."""
    faults, number = amount((2, 3), (25, 16))
    disk = FailIO(tmp_path)
    served, power = cuttable("full", disk)
    served.start()
    with writers(served.path, number, tmp_path) as clients:
        clients.begin()
        clients.wait_for_more(20)
        disk.set(errno.EIO, calls=[what], path="db.sqlite3", every=every)
        for n in range(faults):
            wait_for_replacement(served, disk)
            clients.wait_for_more()
            cut_and_check(power, clients, tmp_path, n).assert_exact()
        disk.off()
        resumed = clients.wait_for_more(2 * number)
        clients.stop()
        clients.finish()
        journals = clients.journals
    report = exact_report(served, journals)
    assert resumed < at_most(5)
    assert disk.hits >= faults
    log = "".join(path.read_text() for path in served.dir.log.glob("server_*.log"))
    assert log.count("the database failed while writing") >= faults
    assert "Traceback" not in log
    said = f"{disk.hits} faults (1 in {every}), {faults} power cuts between, resumed in {resumed:.1f} s: {report}"
    verdict("T16", f"EIO at {what} of database and log", said)


def wait_for_replacement(served, disk):
    """Wait for the next fault, and then for the next server."""
    hits, before = disk.hits, served.address
    wait_until(lambda: disk.hits > hits, "a fault")
    served.wait_for_another(before)
