"""Programs that may open few files: each does what was asked, or says in one line that it can't, and why."""

from __future__ import annotations

import contextlib
import errno
import os
import resource

import pytest
from balsam_program import BALSAM, Program

from balsam_core import Job, open_db
from balsam_core.errors import NoResources
from balsam_core.system import processes
from balsam_core.system.shortages import shortage

LIMITS = [5, 6, 7, 8, 9, 10, 12, 14, 16, 20]  # with fewer, Python itself can't start
PASSES = (0, 6)  # exit codes
UNKNOWN = 7


def limited(limit):
    """Return the program with a limit of open files."""
    return Program(["prlimit", f"--nofile={limit}", *BALSAM])


def check(result, *codes):
    assert result.code in codes, result
    assert "Traceback" not in result.err
    assert "fault" not in result.err
    assert "tell the" not in result.err
    if result.code:
        assert "too many open files" in result.err.lower() or "too few files" in result.err.lower(), result


@pytest.mark.parametrize("limit", LIMITS)
def test_commands_with_few_descriptors(each_db, limit):
    program = limited(limit)
    for words in (["ls"], ["status"]):
        check(program(*words, db=each_db.path), *PASSES)
    done = program("job", "--name", "x", "--command", "true", db=each_db.path)
    check(done, *PASSES, UNKNOWN)
    with open_db(each_db.path) as db:
        count = db.jobs.count()
    assert (done.code, count) in {(0, 1), (6, 0), (UNKNOWN, 0), (UNKNOWN, 1)}


@pytest.mark.parametrize("limit", LIMITS[:-1])
def test_plugins_are_not_blamed(limit):
    check(limited(limit)("plugins", "list"), *PASSES)


def test_a_launcher_with_few_descriptors_blames_nobody(each_db):
    with open_db(each_db.path) as db:
        db.jobs.add(Job(command="true"))
        for limit in LIMITS[::3]:
            words = ("launcher", "--consume-all", "--time-limit-minutes", "0.03")
            check(limited(limit)(*words, db=each_db.path), *PASSES, UNKNOWN)
        assert db.jobs.count() == 1
        assert db.jobs.where(state="FAILED").count() == 0


@pytest.mark.parametrize("limit", [5, 6, 7, 8, 10, 12])
def test_a_backup_with_few_descriptors_is_whole_or_not_there(path, limit, tmp_path):
    saved = tmp_path / "saved"
    done = limited(limit)("backup", saved, db=path)
    check(done, *PASSES)
    assert saved.exists() == (done.code == 0)
    assert not list(tmp_path.glob(".balsam-backup-*"))


@pytest.fixture
def no_descriptors():
    """This process may open no more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    with contextlib.suppress(OSError):
        for _ in range(300):
            taken.append(os.dup(0))  # noqa: PERF401  (those before the error are kept)
    yield
    for descriptor in taken:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("no_descriptors")
def test_a_process_that_can_not_be_looked_at_is_not_dead():
    with pytest.raises(NoResources, match="ulimit"):
        processes.is_alive(os.getpid(), 1.0)
    processes.this_machine.cache_clear()
    with pytest.raises(NoResources, match="ulimit"):
        processes.this_machine()


def test_only_shortages_are_shortages():
    assert shortage(OSError(errno.EMFILE, "x")).exit_code == 6
    assert shortage(ImportError(f"libx.so: {os.strerror(errno.EMFILE)}")) is not None
    assert shortage(MemoryError()) is not None
    assert shortage(FileNotFoundError(errno.ENOENT, "x")) is None
    assert shortage(ImportError("no module named x")) is None
