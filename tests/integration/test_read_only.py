"""A DB on a read-only file system can be read, and is not written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from balsam_program import BALSAM

from balsam_core import Job, open_db
from balsam_core.errors import DBDirError, Unavailable

INSIDE = """
import json, subprocess, sys
path, *commands = sys.argv[1:]
for call in (["mount", "--bind", path, path], ["mount", "-o", "remount,bind,ro", path]):
    if subprocess.run(call, capture_output=True).returncode:
        sys.exit(77)
made = [subprocess.run(json.loads(words), capture_output=True, text=True) for words in commands]
print(json.dumps([[one.returncode, one.stdout, one.stderr] for one in made]))
"""


def read_only(path, *commands):
    """Run commands of ``balsam`` while the DB directory is mounted read-only, for them alone."""
    unshare = shutil.which("unshare") or pytest.skip("unshare is missing")
    inside = [sys.executable, "-c", INSIDE, str(path)]
    inside += [json.dumps([*BALSAM, "--db", str(path), *words]) for words in commands]
    done = subprocess.run([unshare, "--mount", *inside], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "Operation not permitted" in done.stderr:
        pytest.skip("no right to mount")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def killed_while_open(path):
    """Leave the log of a process that was killed."""
    child = os.fork()
    if not child:
        db = open_db(path)
        db.jobs.add(Job(name="in the log", command="true"))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (path / "db.sqlite3-wal").stat().st_size


@pytest.mark.parametrize("has_log", [False, True], ids=["without a log", "with a log"])
def test_it_is_read_and_not_written(path, tmp_path, has_log):
    with open_db(path) as db:
        db.jobs.add(Job(name="before", command="true"))
    if has_log:
        killed_while_open(path)
    names = {file.name: file.read_bytes() for file in path.glob("db.sqlite3*") if not file.name.endswith("-shm")}
    ls, status, show, backup, job, launcher, server = read_only(
        path,
        ["ls"],
        ["status"],
        ["show", "1"],
        ["backup", str(tmp_path / "saved")],
        ["job", "--command", "true"],
        ["launcher", "--consume-all"],
        ["dbserver"],
    )
    for code, out, err in (ls, status, show, backup):
        assert (code, "Error" in err) == (0, False), (out, err)
    assert "before" in ls[1]
    assert ("in the log" in ls[1]) == has_log
    for code, _, err in (job, launcher):
        assert (code, "read-only" in err, err.count("\n")) == (Unavailable.exit_code, True, 1), err
    assert (server[0], "read-only" in server[2]) == (DBDirError.exit_code, True), server
    assert {
        file.name: file.read_bytes() for file in path.glob("db.sqlite3*") if not file.name.endswith("-shm")
    } == names
