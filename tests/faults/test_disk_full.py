"""The disk is full: an error for each write that finds no room, no false word, and on as soon as there is room."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess

import psutil
import pytest
from amounts import at_most
from balsam_program import child
from exact import check, rows_by_sqlite, writers
from shims import FailIO, preload

from balsam_core import Job, open_db
from balsam_core.testing.tools import wait_until

FULL = "the disk is full"


def failures(clients):
    """Return the lines about failed writes."""
    return [
        line
        for journal in clients.journals
        if journal.exists()
        for line in journal.read_text().splitlines()
        if " failed " in line
    ]


def judge(served, clients, resumed):
    """Stop the writers and the server and compare; returns the report."""
    clients.stop()
    clients.finish()
    lines = failures(clients)
    served.stop()
    report = check(clients.journals, rows_by_sqlite(served.path))
    report.assert_exact()
    # Who had sent when the server was killed, and found none for long, is told that the outcome is unknown.
    assert set(report.errors) <= {"unavailable", "outcome-unknown"}
    assert any(FULL in line for line in lines)
    assert resumed < at_most(5)
    log = "".join(path.read_text() for path in served.dir.log.glob("*.log"))
    assert "Traceback" not in log
    return report


def wait_for_errors(clients, act=lambda: None):
    """Do something again and again until more writes have failed."""
    before = len(failures(clients))

    def told():
        act()
        return len(failures(clients)) > before

    wait_until(told, "errors")


def kill_server(served, starts):
    """Kill the server and wait until so many others have been started."""
    watchdog = psutil.Process(served.watchdog)
    before = served.kill_server()
    seen = {before.pid}

    def started():
        seen.update(child.pid for child in watchdog.children())
        return len(seen) > starts

    wait_until(started, "restarted servers")


@pytest.mark.parametrize("dies", [False, True], ids=["server lives", "server dies meanwhile"])
def test_no_room_for_the_server(make_served, tmp_path, amount, verdict, dies):
    """The server finds no room for its files: writes fail until there is room, and none is lost or doubled (T15)."""
    rounds, number, starts = amount((1, 3, 2), (10, 16, 5))
    disk = FailIO(tmp_path)
    served = make_served(env=preload(disk))
    served.start()
    worst = 0.0
    with writers(served.path, number, tmp_path, pause=0.01) as clients:
        clients.begin()
        for _ in range(rounds):
            clients.wait_for_more(number)
            disk.set(errno.ENOSPC, path=str(served.path), calls=["write", "truncate", "open"])
            wait_for_errors(clients)
            if dies:
                kill_server(served, starts)
            disk.off()
            worst = max(worst, clients.wait_for_more())
        report = judge(served, clients, worst)
    fault = "no room for the server's files" + (", and it is killed" if dies else "")
    verdict("T15", fault, f"{rounds} times, resumed in {worst:.1f} s: {report}")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, 16 MiB large."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(16 * 1024 * 1024)
    with contextlib.ExitStack() as stack:
        for words in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, place]):
            try:
                done = subprocess.run(words, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                pytest.skip(f"there is no {words[0]} here")
            if done.returncode != 0:
                pytest.skip(f"{words[0]} doesn't work here: {done.stderr.strip()}")
        stack.callback(lambda: subprocess.run(["umount", "-l", place], check=False))
        yield place


def fill(path):
    """Take all the room that is left."""
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def test_full_disk(small_disk, make_served, tmp_path, amount, verdict):
    """A real disk is full, with DB, address and log on it: writes fail until there is room, none is lost (T15)."""
    rounds, number = amount((1, 3), (6, 16))
    served = make_served("disk/db")
    served.start()
    worst = 0.0
    ballast = small_disk / "ballast"
    with writers(served.path, number, tmp_path, pause=0.01) as clients:
        clients.begin()
        for n in range(rounds):
            clients.wait_for_more(number)
            wait_for_errors(clients, lambda: fill(ballast))
            if n % 2 == 0:
                kill_server(served, 1)
            ballast.unlink()
            worst = max(worst, clients.wait_for_more())
        report = judge(served, clients, worst)
    served.close()
    verdict("T15", "16 MiB disk full, with DB, address and log", f"{rounds} times, resumed in {worst:.1f} s: {report}")


def test_server_is_stopped_and_started_on_a_full_disk(small_disk, make_served, verdict):
    """The disk is full: the server stops, a start names the reason, and with room it works again (T15)."""
    served = make_served("disk/db")
    served.start()
    ballast = small_disk / "ballast"
    fill(ballast)
    served.stop()
    fill(ballast)
    done = served.command()
    assert "no space left on device" in done.error or FULL in done.error
    ballast.unlink()
    served.start()
    with open_db(served.path) as db:
        db.jobs.add(Job(name="on", command="true"))
    served.close()
    verdict(
        "T15",
        "dbserver --stop and dbserver on a full disk",
        f"stops; starts again with room, before: {done.error}",
    )


def test_no_room_for_the_lease_while_the_server_is_replaced(make_served, tmp_path, verdict):
    """The watchdog can't note its new server in the lease: it does so later, and ``dbserver`` finds it (T15)."""
    disk = FailIO(tmp_path)
    served = make_served(env=preload(disk))
    before = served.start()
    disk.set(errno.ENOSPC, path="dbserver.lease", calls=["write", "open"])
    served.kill_server()
    published = served.wait_for_another(before)
    wait_until(lambda: disk.hits >= 2, "the attempts to write the lease")
    assert served.lease.child_pid == before.pid
    disk.off()
    wait_until(lambda: served.lease.child_pid == published.pid, "the lease", seconds=at_most(10))
    shown = child.good("dbserver", "-o", "json", db=served.path).json
    assert (shown["already"], shown["pid"]) == (True, published.pid)
    assert child.good("dbserver", "--status", "-o", "json", db=served.path).json["state"] == "running"
    verdict("T15", "no room for the lease while the server is replaced", "noted once there was room")
