"""The watchdog of PostgreSQL's and MariaDB's server dies, alone or with it; and files name foreign processes."""

from __future__ import annotations

import os
import signal
import time

import msgspec
import psutil
from amounts import at_most
from backend_dbs import foreign_process, report_of
from balsam_program import child
from exact import writers
from resources import is_alive, wait_for_end
from served_db import listens

from balsam_core import Job, open_db
from balsam_core.dbdir import address
from balsam_core.dbdir.lease import EXPIRY, encode_lease, lease_file
from balsam_core.testing.tools import signal_all, wait_until

LOCKS = {"postgres": "postgres/postmaster.pid", "mysql": "mysql/server.pid"}  # the server's own files of its process id


def wait_for_silence(where):
    """Wait until nobody accepts connections there: the threads of a server may end a moment later than it seems."""
    wait_until(lambda: not listens(where), "the end of its port", seconds=at_most(10))


def test_watchdog_killed_under_writers(backend, kind, tmp_path, amount, verdict):
    """The watchdog is killed under writers: its server ends too, and the next start works (T07)."""
    kills = amount(2, 25)
    ends, starts = [], []
    with writers(backend.path, 3, tmp_path, name="orphan") as clients:
        clients.begin()
        for turn in range(kills):
            clients.wait_for_more(6)
            before, everybody = backend.address, [process.pid for process in backend.processes()]
            frozen = [] if turn % 5 != 1 else backend.processes()[1:]
            signal_all(signal.SIGSTOP, frozen)  # they can't hear it
            began = time.monotonic()
            os.kill(backend.watchdog, signal.SIGKILL)
            if not frozen:
                wait_for_end(everybody)
                ends.append(time.monotonic() - began)
                wait_for_silence(before)
            began = time.monotonic()
            now = backend.start()
            starts.append(time.monotonic() - began)
            assert now.generation == before.generation + 1
            assert not any(map(is_alive, everybody))
        clients.wait_for_more(6)
        clients.stop()
        clients.finish()
    report = report_of(clients, backend, "orphan")
    report.assert_exact()
    assert set(report.errors) <= {"server-not-running"}, report
    assert max(ends) <= at_most(10)
    verdict(
        "T07",
        f"{kind}: watchdog SIGKILLed under 3 writers",
        f"{kills} kills (every fifth with a frozen server): server and port gone within {max(ends):.2f} s, the next"
        f" start took up to {max(starts):.2f} s: {report}",
    )


def test_both_killed(backend, kind, amount, verdict):
    """Watchdog and server are killed at once: commands say so, and the next start works without a reset (T08)."""
    errors, starts = [], []
    with open_db(backend.path) as db:
        for turn in range(amount(1, 5)):
            db.jobs.add(Job(name=f"before{turn}", command="true"))
            backend.kill_all()
            if amount(False, True):
                began = time.monotonic()
                line = child.refused("ls", "--db", backend.path)
                errors.append(time.monotonic() - began)
                assert "start it with balsam dbserver --path=" in line
            began = time.monotonic()
            backend.start()
            starts.append(time.monotonic() - began)
            assert db.jobs.where(name=f"before{turn}").count() == 1
    assert max(errors, default=0) <= at_most(12)
    assert max(starts) <= at_most(10)
    verdict(
        "T08",
        f"{kind}: watchdog and server SIGKILLed",
        f"{len(starts)} times: clear error after {max(errors, default=0):.1f} s, the next start took up to"
        f" {max(starts):.2f} s, no manual reset",
    )


def forge(served, kind, lease, published, pid, start):
    """Let all files that name a process name this one, as if its number had been the server's."""
    lease_file(served.dir).write_bytes(
        encode_lease(msgspec.structs.replace(lease, pid=pid, start=start - 5, child_pid=pid, child_start=start - 5))
    )
    served.dir.address_file.write_bytes(
        msgspec.json.encode(msgspec.structs.replace(published, pid=pid, start_time=start - 5))
    )
    moment = time.time() - EXPIRY - 1
    os.utime(lease_file(served.dir), (moment, moment))
    lock = served.path / LOCKS[kind]
    rest = lock.read_bytes().partition(b"\n")[2] if lock.exists() else b""
    lock.write_bytes(b"%d\n%s" % (pid, rest))


def test_foreign_process_with_a_reused_number_is_never_signalled(backend, kind, amount, verdict):
    """All files name a foreign process, once one that works in the server's folder: it is never signalled (T10)."""
    folder = (backend.path / LOCKS[kind]).parent
    lease, published = backend.kill_all()
    acts = amount([[]], [["--status"], ["--stop"], ["--reset"], []])
    for place in (None, folder):
        with foreign_process(place) as (pid, start):
            for words in acts:
                forge(backend, kind, lease, published, pid, start)
                done = backend.command(*words)
                assert done.code == 0, done
                published = backend.start()
                with open_db(backend.path) as db:
                    db.jobs.count()
                backend.kill_all()
    verdict(
        "T10",
        f"{kind}: process id reused by a foreign process",
        f"lease, address and {LOCKS[kind]} name one, elsewhere or working in the server's folder: no signal reached it,"
        f" each start worked ({' '.join(words[0] if words else 'start' for words in acts)})",
    )


def test_of_twenty_starts_at_once_one_wins(lasting_backend, kind, amount, verdict):
    """Many start the server at once: one wins, the others are told its address (T11)."""
    served, rounds, number = lasting_backend, amount(1, 20), amount(6, 20)
    slowest = 0.0
    for _ in range(rounds):
        served.stop()
        slowest = max(slowest, served.start_together(number))
        wait_until(lambda: watchdogs_of(served) == [served.watchdog], "the end of the others", seconds=at_most(10))
    verdict(
        "T11",
        f"{kind}: {number} dbserver at once",
        f"{rounds} rounds: one started, the others told its address, all with exit code 0; the slowest took"
        f" {slowest:.1f} s",
    )


def watchdogs_of(served):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "balsam_core.watchdog" in words and str(served.path) in words:
            found.append(process.pid)
    return found


def test_nothing_is_left_after_a_stop(backend, verdict, kind):
    """The server is stopped: no process, port or address is left (T08)."""
    everybody, before = [process.pid for process in backend.processes()], backend.address
    backend.stop()
    assert not any(map(is_alive, everybody))
    wait_for_silence(before)
    assert address.read(backend.dir) is None
    verdict("T08", f"{kind}: --stop", "no process and no port is left")
