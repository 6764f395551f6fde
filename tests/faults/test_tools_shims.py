"""The shims do what they say: each is tried on a small program, once with the fault and once without."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing, contextmanager

import pytest
from shims import LUSTRE, FailIO, FakeFS, NoLocks, PowerLoss, SlowFsync, preload

WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(f"PRAGMA synchronous={sys.argv[2]}")
connection.execute("PRAGMA wal_autocheckpoint=50")
number = connection.execute("SELECT coalesce(max(number), -1) FROM tally").fetchone()[0]
while True:
    number += 1
    connection.execute("INSERT INTO tally VALUES (?, ?)", (number, "x" * 300))
    print(number, flush=True)
"""


def run(code, *arguments, shims):
    """Run a program under shims; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=preload(*shims),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@contextmanager
def talking(code, *arguments, shims):
    """Run a program and kill it in the end."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(argv, env=preload(*shims), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def made_database(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE tally (number INTEGER PRIMARY KEY, text TEXT)")
    return path


def numbers_in(path):
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [number for (number,) in connection.execute("SELECT number FROM tally ORDER BY number")]


# ------------------------------------------------------------------------------------------------------- simple shims

TIMED = """
    import os, sys, time
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    start = time.monotonic()
    for sync in (os.fsync, os.fdatasync) * 5:
        sync(fd)
    print(time.monotonic() - start)
"""


def test_slow_fsync_takes_its_time(tmp_path):
    shim = SlowFsync(tmp_path)
    run(TIMED, tmp_path / "file", shims=[shim])
    assert shim.hits == 0
    shim.set(0.02)
    (seconds,) = run(TIMED, tmp_path / "file", shims=[shim])
    assert float(seconds) >= 0.2
    assert shim.hits == 10


FAILING = """
    import os, sys
    def attempt(function, *arguments):
        try:
            function(*arguments)
            print("ok")
        except OSError as err:
            print(err.errno)
    fd = os.open(sys.argv[1], os.O_RDWR)
    calls = [(os.write, fd, b"x"), (os.pwrite, fd, b"x", 0), (os.writev, fd, [b"x"]), (os.ftruncate, fd, 0),
        (os.fsync, fd), (os.fdatasync, fd), (os.read, fd, 1), (os.pread, fd, 1, 0),
        (os.open, sys.argv[1] + "2", os.O_CREAT)]
    for call in calls:
        attempt(*call)
"""


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (["write"], "EEE......"),
        (["truncate"], "...E....."),
        (["fsync"], "....EE..."),
        (["read"], "......EE."),
        (["open"], "........E"),
        (["write", "fsync", "truncate"], "EEEEEE..."),
    ],
)
def test_chosen_calls_on_a_file_fail(tmp_path, calls, expected):
    shim = FailIO(tmp_path)
    for name in ("victim", "other"):
        (tmp_path / name).touch()
    assert run(FAILING, tmp_path / "victim", shims=[shim]) == ["ok"] * 9
    shim.set(errno.EIO, path="/victim", calls=calls)
    outcomes = run(FAILING, tmp_path / "victim", shims=[shim])
    assert outcomes == [str(errno.EIO) if letter == "E" else "ok" for letter in expected]
    assert shim.hits == expected.count("E")
    assert run(FAILING, tmp_path / "other", shims=[shim]) == ["ok"] * 9


def test_every_third_call_fails(tmp_path):
    shim = FailIO(tmp_path)
    (tmp_path / "victim").touch()
    shim.set(errno.ENOSPC, path="/victim", calls=["write"], every=3)
    assert run(FAILING, tmp_path / "victim", shims=[shim])[:3] == ["ok", "ok", str(errno.ENOSPC)]


def test_running_sqlite_meets_a_full_disk_and_goes_on_when_there_is_room(tmp_path):
    shim = FailIO(tmp_path)
    code = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    try:
        connection.execute("INSERT INTO tally VALUES (?, '')", (int(line),))
        print("ok", flush=True)
    except sqlite3.OperationalError as err:
        print(err, flush=True)
"""
    path = made_database(tmp_path / "db.sqlite3")
    argv = [sys.executable, "-c", code, path]
    with subprocess.Popen(
        argv, env=preload(shim), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:

        def insert(number):
            process.stdin.write(f"{number}\n")
            return process.stdout.readline().strip()

        try:
            assert insert(1) == "ok"
            shim.set(errno.ENOSPC, path="db.sqlite3", calls=["write"])
            assert insert(2) == "database or disk is full"
            shim.set(errno.EIO, path="db.sqlite3-wal", calls=["fsync"])
            assert insert(3) == "disk I/O error"
            shim.off()
            assert insert(4) == "ok"
        finally:
            process.kill()
    assert {1, 4} <= set(numbers_in(path))
    assert shim.hits


LOCKING = """
    import fcntl, sys
    for lock in (fcntl.lockf, fcntl.flock):
        with open(sys.argv[1], "r+b") as file:
            try:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                print("locked")
            except OSError as err:
                print(err.errno)
"""


def test_locks_lie_or_fail(tmp_path):
    shim = NoLocks(tmp_path)
    path = tmp_path / "file"
    with path.open("wb") as one, path.open("r+b") as two:
        fcntl.lockf(one, fcntl.LOCK_EX)
        fcntl.flock(two, fcntl.LOCK_EX)
        assert run(LOCKING, path, shims=[shim]) == [str(errno.EAGAIN)] * 2
        shim.lie()
        assert run(LOCKING, path, shims=[shim]) == ["locked"] * 2
        shim.fail(errno.ENOLCK)
        assert run(LOCKING, path, shims=[shim]) == [str(errno.ENOLCK)] * 2
        shim.off()
        assert run(LOCKING, path, shims=[shim]) == [str(errno.EAGAIN)] * 2


def test_lying_locks_let_two_sqlite_writers_in(tmp_path):
    shim = NoLocks(tmp_path)
    path = made_database(tmp_path / "db.sqlite3")
    code = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
    connection.execute("BEGIN IMMEDIATE")
    print("in")
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as mine:
        mine.execute("BEGIN IMMEDIATE")
        with pytest.raises(AssertionError, match="locked"):
            run(code, path, shims=[shim])
        shim.lie()
        assert run(code, path, shims=[shim]) == ["in"]


def test_file_system_seems_to_be_another(tmp_path):
    shim = FakeFS(tmp_path)
    code = """
    import sys
    from balsam_core.system.filesystems import filesystem_type
    print(filesystem_type(sys.argv[1]))
    """
    (honest,) = run(code, tmp_path, shims=[shim])
    assert honest not in {"nfs", "lustre"}
    shim.set()
    assert run(code, tmp_path, shims=[shim]) == ["nfs"]
    shim.set(LUSTRE)
    assert run(code, tmp_path, shims=[shim]) == ["lustre"]


# -------------------------------------------------------------------------------------------------------- power loss


@pytest.fixture
def watched(tmp_path):
    """A directory that is tracked, with a WAL database in it."""
    directory = tmp_path / "watched"
    directory.mkdir()
    made_database(directory / "db.sqlite3")
    return directory


def lost_rows(watched, tmp_path, mode, *, keep="nothing", writes=200):
    """Write, kill, cut the power; returns how many acknowledged rows are missing."""
    shim = PowerLoss(tmp_path, watched)
    with talking(WRITER, watched / "db.sqlite3", mode, shims=[shim]) as process:
        acknowledged = [int(process.stdout.readline()) for _ in range(writes)]
        process.send_signal(signal.SIGKILL)
        acknowledged += map(int, process.stdout)
    assert numbers_in(watched / "db.sqlite3")[: len(acknowledged)] == acknowledged, "the system itself didn't fail"
    shim.cut(tmp_path / "after", keep=keep)
    return len(acknowledged) - len(set(acknowledged) & set(numbers_in(tmp_path / "after" / "db.sqlite3")))


@pytest.mark.parametrize("keep", ["nothing", "something"])
def test_full_synchronous_sqlite_loses_nothing_acknowledged(watched, tmp_path, keep):
    assert lost_rows(watched, tmp_path, "FULL", keep=keep) == 0


def test_relaxed_sqlite_loses_the_last_moments(watched, tmp_path):
    assert 0 < lost_rows(watched, tmp_path, "NORMAL") <= 60


def test_careless_sqlite_loses_everything(watched, tmp_path):
    assert lost_rows(watched, tmp_path, "OFF") >= 200


def test_power_is_cut_under_a_running_program(watched, tmp_path):
    """The program goes on, is killed and started again: the page cache outlives it, so later cuts see its past."""
    shim = PowerLoss(tmp_path, watched)
    acknowledged: set[int] = set()
    for start in range(3):
        with talking(WRITER, watched / "db.sqlite3", "FULL", shims=[shim]) as process:
            for cut in range(4):
                acknowledged |= {int(process.stdout.readline()) for _ in range(40)}
                target = tmp_path / f"after-{start}-{cut}"
                shim.cut(target, keep="something" if cut % 2 else "nothing", seed=cut)
                assert acknowledged <= set(numbers_in(target / "db.sqlite3"))
            process.kill()
            acknowledged |= set(map(int, process.stdout))


def test_writers_share_one_disk(watched, tmp_path):
    """Two processes, SQLite's checkpoints: what one writes the other forces to disk."""
    shim = PowerLoss(tmp_path, watched)
    code = WRITER.replace("number += 1", "number += 2").replace(
        "number = conn", "number = int(sys.argv[3]); connection.execute('PRAGMA busy_timeout=60000'); _ = conn"
    )
    path = watched / "db.sqlite3"
    with talking(code, path, "FULL", 0, shims=[shim]) as even, talking(code, path, "FULL", 1, shims=[shim]) as odd:
        acknowledged = [int(process.stdout.readline()) for _ in range(100) for process in (even, odd)]
        shim.cut(tmp_path / "after")
    assert set(acknowledged) <= set(numbers_in(tmp_path / "after" / "db.sqlite3"))


FILES = """
import os, sys
os.chdir(sys.argv[1])

def write(path, text, sync=True):
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        if sync:
            os.fsync(file.fileno())

def sync_directory(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

write("kept", "new")
write("unsynced", "new", sync=False)
write("replaced.new", "new")
os.rename("replaced.new", "replaced")
os.unlink("removed")
write("made", "new")
write("made-unsynced", "new", sync=False)
os.mkdir("folder")
write("folder/file", "new")
sync_directory("folder")
write("folder/late", "new")
if sys.argv[2] == "synced":
    sync_directory(".")
with open("appended", "a") as file:
    file.write("1")
    file.flush()
    os.fsync(file.fileno())
    file.write("2")
"""
OLD = dict.fromkeys(["kept", "unsynced", "replaced", "removed", "appended"], "old")


def after_files(tmp_path, *arguments):
    directory = tmp_path / "watched"
    directory.mkdir()
    for name, text in OLD.items():
        (directory / name).write_text(text)
    shim = PowerLoss(tmp_path, directory)
    run(FILES, directory, *arguments, shims=[shim])
    shim.cut(tmp_path / "after")
    found = (path for path in (tmp_path / "after").rglob("*") if path.is_file())
    return {str(path.relative_to(tmp_path / "after")): path.read_text() for path in found}


def test_names_come_to_the_disk_with_their_directory(tmp_path):
    assert after_files(tmp_path, "synced") == {
        "kept": "new",
        "unsynced": "old",
        "replaced": "new",
        "appended": "old1",
        "made": "new",
        "made-unsynced": "",
        "folder/file": "new",
    }


def test_names_are_lost_without_their_directory(tmp_path):
    assert after_files(tmp_path, "unsynced") == {
        **OLD,
        "kept": "new",
        "appended": "old1",
        "folder/file": "new",
    }


def test_what_a_failed_fsync_should_have_written_never_comes(tmp_path):
    directory = tmp_path / "watched"
    directory.mkdir()
    code = """
    import os, sys
    fd = os.open(sys.argv[1], os.O_WRONLY)
    for number in range(3):
        os.write(fd, b"%d" % number)
        try:
            os.fsync(fd)
        except OSError:
            print("failed")
    """
    (directory / "file").write_text("abc")
    shim, disk = PowerLoss(tmp_path, directory), FailIO(tmp_path)
    disk.set(errno.EIO, path="watched/file", every=2)
    assert run(code, directory / "file", shims=[disk, shim]) == ["failed"]
    assert (directory / "file").read_text() == "012"
    shim.cut(tmp_path / "after")
    assert (tmp_path / "after" / "file").read_text() == "0b2"


def test_writing_that_is_not_seen_is_told(tmp_path):
    directory = tmp_path / "watched"
    directory.mkdir()
    shim = PowerLoss(tmp_path, directory)
    code = """
    import os, sys
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(fd, 0, 10)
    os.fsync(fd)
    """
    run(code, directory / "file", shims=[shim])
    with pytest.raises(AssertionError, match="can't see"):
        shim.cut(tmp_path / "after")


def test_permissions_survive(tmp_path):
    directory = tmp_path / "watched"
    directory.mkdir(mode=0o700)
    secret = directory / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    PowerLoss(tmp_path, directory).cut(tmp_path / "after")
    assert (tmp_path / "after" / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "after").stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path / "after") == ["secret"]  # noqa: PTH208


def test_no_compiler_is_a_reason_to_skip(tmp_path, monkeypatch):
    import shims

    monkeypatch.setattr(shutil, "which", lambda _name: None)
    shims.build.cache_clear()
    with pytest.raises(pytest.skip.Exception, match="C compiler"):
        SlowFsync(tmp_path)
