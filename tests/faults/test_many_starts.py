"""Many start the server of one DB at once."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from amounts import at_most

from balsam_core import Job, open_db
from balsam_core.testing.tools import wait_until


def processes_with(path):
    """Return watchdogs and servers of a DB: process ids of those that no other of them started, by module."""
    found = {"balsam_core.watchdog": [], "balsam_core.proxy": []}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            module = next((words[n + 1] for n, word in enumerate(words[:-1]) if word == "-m"), "")
            if module in found and str(path) in words:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found[module].append((int(entry.name), parent))
    servers = {pid for pid, _ in found["balsam_core.proxy"]}  # readers are children of one
    return {module: [pid for pid, parent in pids if parent not in servers] for module, pids in found.items()}


def epoch_of(path):
    """Return the number in the database."""
    with contextlib.closing(sqlite3.connect(path / "db.sqlite3")) as connection:
        return int(connection.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0])


def test_of_twenty_starts_at_once_one_wins(make_served, amount, verdict):
    """Twenty start the server at once: one wins, the others are told its address (T11)."""
    rounds, number = amount(1, 50), 20
    served = make_served()
    slowest = 0.0
    for turn in range(1, rounds + 1):
        slowest = max(slowest, served.start_together(number))
        # Those that lost end a moment after their starters were told.
        wait_until(lambda: len(processes_with(served.path)["balsam_core.watchdog"]) == 1, seconds=at_most(10))
        assert processes_with(served.path) == {
            "balsam_core.watchdog": [served.watchdog],
            "balsam_core.proxy": [served.server],
        }
        with open_db(served.path) as db:
            db.jobs.add(Job(name=f"round {turn}", command="true"))
            assert db.transport.server_status().epoch == turn
        served.stop()
        assert processes_with(served.path) == {"balsam_core.watchdog": [], "balsam_core.proxy": []}
        assert epoch_of(served.path) == turn
        assert not [one.name for one in os.scandir(served.path) if one.name.endswith((".tmp", ".stale"))]
    verdict(
        "T11",
        "twenty dbserver at once",
        f"{rounds} rounds: one started, {number - 1} told its address, all with exit code 0; one watchdog and one"
        f" server each time, one number taken in the database; the slowest round took {slowest:.1f} s",
    )
