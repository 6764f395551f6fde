"""On a network file system the server alone opens the database; its locks, where they are honest, keep others out."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess

from amounts import at_most
from balsam_program import child
from exact import check, rows_by_sqlite, writers
from shims import NFS, FakeFS, preload

from balsam_core.errors import ServerNotRunning


def test_server_works_alone_and_nobody_goes_past_it(make_served, tmp_path, amount, verdict):
    """The DB is on a network file system: only its server opens the file, alone, and nothing is lost (T12)."""
    kills = amount(1, 20)
    disk = FakeFS(tmp_path)
    environment = preload(disk)
    served = make_served(env=environment)
    disk.set(NFS)
    line = child.refused("ls", db=served.path, env=environment, code=ServerNotRunning.exit_code)
    assert "is on nfs, a network file system" in line
    assert "run balsam dbserver" in line
    served.start()
    child.good("ls", db=served.path, env=environment)
    done = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(served.server)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "", "readers would open the file a second time"
    with writers(served.path, 8, tmp_path, env=environment) as clients:
        clients.begin()
        for _ in range(kills):
            clients.wait_for_more(50)
            assert not (served.path / "db.sqlite3-shm").exists()
            with contextlib.closing(sqlite3.connect(served.path / "db.sqlite3", timeout=0)) as other:
                try:
                    other.execute("SELECT count(*) FROM jobs").fetchone()
                    refused = ""
                except sqlite3.OperationalError as err:
                    refused = str(err)
            assert refused == "database is locked"
            served.wait_for_another(served.kill_server())
        clients.wait_for_more(50)
        clients.stop()
        clients.finish()
        journals = clients.journals
    served.stop()
    line = child.refused("ls", db=served.path, env=environment, code=ServerNotRunning.exit_code)
    report = check(journals, rows_by_sqlite(served.path))
    report.assert_exact()
    assert not report.errors
    assert report.longest_stall < at_most(5)
    verdict(
        "T12",
        "network file system (statfs says NFS)",
        "direct opening refused, the server holds exclusive locks that keep any other program out, no shared memory;"
        f" {kills} kills: {report}",
    )
