"""The disk under PostgreSQL's and MariaDB's server reports errors, or its files are damaged or somebody else's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import subprocess
import time

import pytest
from backend_dbs import make_db, report_of
from balsam_program import child
from exact import writers
from shims import FailIO, preload

from balsam_core import Job, open_db
from balsam_core.dbdir.directory import DBDir
from balsam_core.testing.tools import wait_until
from balsam_core.watchdog import control

LOG = {"postgres": "pg_wal/", "mysql": "ib_logfile"}  # what an acknowledgement waits for
DATA = {"postgres": "base/", "mysql": "ibdata1"}
GIVES_UP = {"postgres": "PANIC:", "mysql": "[FATAL]"}
SECONDS = 60.0  # in which a start must have an end, on a busy machine


def test_disk_that_reports_errors_at_fsync(make_backend, kind, tmp_path, amount, verdict):
    """The disk fails to sync the log: the server trusts no later fsync, and nothing is lost (T16)."""
    faults, number = amount((1, 3), (25, 16))
    disk = FailIO(tmp_path)
    served = make_backend("eio", env=preload(disk))
    served.start()
    with writers(served.path, number, tmp_path, name="eio") as clients:
        clients.begin()
        clients.wait_for_more(number)
        for _ in range(faults):
            disk.set(errno.EIO, path=LOG[kind], every=3)
            wait_for_a_fault(disk)
            disk.off()
            clients.wait_for_more(number)
        clients.stop()
        clients.finish()
    report = report_of(clients, served, "eio")
    report.assert_exact()
    assert not report.errors
    assert gave_up(served, kind) >= faults, "it went on after a failed fsync"
    verdict("T16", f"{kind}: EIO at fsync of the log", f"{disk.hits} faults: gave up at once, restarted: {report}")


def test_disk_that_reports_errors_while_the_server_stops(make_backend, kind, tmp_path, verdict):
    """The disk fails to sync the data files: all is in the log, so nothing is lost (T16)."""
    disk = FailIO(tmp_path)
    served = make_backend("eio data", env=preload(disk))
    served.start()
    with open_db(served.path) as db:
        db.jobs.add(Job(name=f"{n}", command="true") for n in range(300))
        disk.set(errno.EIO, path=DATA[kind])
        served.stop()
        disk.off()
        assert disk.hits
        served.start()
        assert db.jobs.count() == 300
    assert gave_up(served, kind), "it went on after a failed fsync"
    verdict("T16", f"{kind}: EIO at fsync of the data", f"{disk.hits} faults while it stopped; nothing is missing")


def wait_for_a_fault(disk):
    """Wait for one more."""
    before = disk.hits
    wait_until(lambda: disk.hits > before, "a fault")


def gave_up(served, kind):
    """Return how often the server has ended itself for a disk that can't be trusted."""
    said = "".join(path.read_text() for path in served.dir.log.glob("*.log"))
    return max(said.count(GIVES_UP[kind]), said.count("was ended by SIGABRT"))


# ------------------------------------------------------------------------------------------------------- damaged files


def truncated(*names):
    def do(home, _other):
        for name in names:
            for path in sorted(home.glob(name)):
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size // 3)

    return do


def zeroed(name):
    def do(home, _other):
        (path,) = home.glob(name)
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))

    return do


def removed(name):
    def do(home, _other):
        for path in home.glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return do


def written(name, text):
    def do(home, _other):
        (home / name).write_text(text)

    return do


def emptied(home, _other):
    shutil.rmtree(home)
    home.mkdir(mode=0o700)


def swapped(home, other):
    shutil.rmtree(home)
    subprocess.run(["cp", "-a", other, home], check=True)


def moved(home, _other):
    shutil.rmtree(home)


HOME = {"postgres": "postgres", "mysql": "mysql"}
# What may come of it: "refused" before anything is started, files untouched; "either": refused or served, in one line.
DAMAGES = {
    "postgres": {
        "pg_control truncated": (truncated("global/pg_control"), "either"),
        "pg_control zeroed": (zeroed("global/pg_control"), "either"),
        "pg_control missing": (removed("global/pg_control"), "refused"),
        "PG_VERSION of another major": (written("PG_VERSION", "9\n"), "refused"),
        "PG_VERSION garbage": (written("PG_VERSION", "\0\xff?"), "refused"),
        "WAL truncated": (truncated("pg_wal/0*"), "either"),
        "WAL missing": (removed("pg_wal/0*"), "either"),
        "tables truncated": (truncated("base/*/[1-9][0-9]*"), "either"),
        "data of another DB": (swapped, "either"),
        "empty directory": (emptied, "refused"),
        "no directory": (moved, "refused"),
    },
    "mysql": {
        "ibdata1 truncated": (truncated("data/ibdata1"), "either"),
        "ibdata1 missing": (removed("data/ibdata1"), "refused"),
        "log truncated": (truncated("data/ib_logfile0"), "either"),
        "log missing": (removed("data/ib_logfile0"), "either"),
        "aria_log_control truncated": (truncated("data/aria_log_control"), "either"),
        "tables truncated": (truncated("data/balsam/*.ibd"), "either"),
        "system tables missing": (removed("data/mysql"), "refused"),
        "data of another DB": (swapped, "either"),
        "empty directory": (emptied, "refused"),
        "no directory": (moved, "refused"),
    },
}


@pytest.fixture(scope="module")
def healthy(run_directory, kind):
    """A DB with some jobs, at rest."""
    with make_db(kind, run_directory / f"{kind} healthy") as db:
        db.start()
        with open_db(db.path) as opened:
            opened.jobs.add(Job(name=f"job{n}", command="echo something", workflow=f"w{n % 7}") for n in range(300))
        db.stop()
        yield db.path


@pytest.fixture
def other(run_directory, kind, amount):
    """The data of another DB; None where they are not needed."""
    with contextlib.ExitStack() as stack:
        make = amount(None, make_db)
        yield make and stack.enter_context(make(kind, run_directory / f"{kind} other")).path / HOME[kind]


def digest_of(directory):
    """Return names, sizes and contents of all files, as one number."""
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        total.update(str(path.relative_to(directory)).encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


def test_damaged_or_foreign_files(healthy, other, run_directory, kind, amount, verdict):
    """The server's files are damaged, or another DB's: refused and left alone, or noticed in use (T17)."""
    seen, slowest = {}, 0.0
    cases = list(DAMAGES[kind].items())
    for name, (damage, expected) in cases[1::4] if other is None else cases:
        path = run_directory / f"{kind} {name}"
        subprocess.run(["cp", "-a", healthy, path], check=True)
        damage(path / HOME[kind], other)
        before = digest_of(path / HOME[kind]) if expected == "refused" and "no dir" not in name else None
        began = time.monotonic()
        outcome = use(path)
        slowest = max(slowest, time.monotonic() - began)
        seen[name] = outcome
        assert expected in {outcome, "either"}, (name, outcome)
        if before:
            assert digest_of(path / HOME[kind]) == before, name
        assert not control.has_server(DBDir.open(path)), name
        log = "".join(file.read_text() for file in (path / "log").glob("*.log"))
        assert "Traceback" not in log, (name, log)
        shutil.rmtree(path)
    assert slowest < SECONDS
    verdict(
        "T17",
        f"{kind}: damaged or foreign files",
        f"{', '.join(f'{name}: {outcome}' for name, outcome in seen.items())}; the slowest took {slowest:.1f} s",
    )


def use(path):
    """Start the server and look at all jobs; says how that ended."""
    started = child("dbserver", "--path", path)
    if started.code:
        line = started.error
        print(f"{path.name}: {line}")  # noqa: T201  (for pytest -s)
        assert any(word in line for word in ("backup", "log is in", "install", "password")), line
        return "refused"
    try:
        shown = child("ls", "--limit", "0", "--db", path)
        if shown.code:
            print(f"{path.name}: {shown.error}")  # noqa: T201
            return "noticed in use"
        return "served"
    finally:
        child.good("dbserver", "--stop", "--path", path)
