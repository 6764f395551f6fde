"""As whom a DB's own MariaDB server runs: root's as root, anybody else's as its owner, also when root starts it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
from balsam_program import Program

ROOT = Path(__file__).parents[2]
NOBODY = 65534
SERVER = shutil.which("mariadbd", path=os.environ.get("PATH", "") + ":/usr/sbin")
# It may find its modules and yet not be started again.
PROBE = """
import subprocess, sys
import MySQLdb, balsam_core
subprocess.run([sys.executable, "-I", "-S", "-c", "import ctypes"], check=True)
"""

pytest.importorskip("MySQLdb")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
    pytest.mark.skipif(not SERVER, reason="no MariaDB server programs"),
]


@pytest.fixture
def place():
    """A directory that everybody may pass through and only its owner change."""
    made = Path(tempfile.mkdtemp(prefix="balsam-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def python():
    """A Python that every user can run, with the modules of this one."""
    for candidate in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
        tried = subprocess.run(
            [*as_nobody(), candidate, "-c", PROBE],
            capture_output=True,
            check=False,
            env=environment(),
            cwd="/",
        )
        if tried.returncode == 0:
            return candidate
    pytest.skip("another user can't run this Python")


def as_nobody():
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]


def environment():
    places = [ROOT, *sorted(ROOT.glob("plugins/*")), sysconfig.get_paths()["platlib"]]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "PYTHONDONTWRITEBYTECODE": "1"}


def run(python, *words, prefix=()):
    return Program([*prefix, python, "-m", "balsam_core.cli"], env=environment(), cwd="/")(*words)


def good(python, *words, prefix=()):
    done = run(python, *words, prefix=prefix)
    assert done.code == 0, done
    return done


def owner_of_server(python, path):
    pid = json.loads((path / "dbwriter_address").read_text())["pid"]
    assert "mariadbd" in Path(f"/proc/{pid}/cmdline").read_text()
    return Path(f"/proc/{pid}").stat().st_uid


def test_an_ordinary_user_in_a_private_folder(python, place):
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)
    path = home / "db"
    try:
        for words in (("init", path, "--db-type", "mysql"), ("dbserver", "--path", path), ("ls", "--db", path)):
            good(python, *words, prefix=as_nobody())
        assert owner_of_server(python, path) == NOBODY
        good(python, "dbserver", "--path", path, "--stop", prefix=as_nobody())
        # Root may start it, and it runs as its owner all the same, with TLS as well.
        good(python, "dbserver", "--path", path, "--host", "0.0.0.0")
        assert owner_of_server(python, path) == NOBODY
        good(python, "ls", "--db", path)
        assert {file.stat().st_uid for file in (path / "mysql").rglob("*")} == {NOBODY}
        assert {file.stat().st_uid for file in (path / "keys").rglob("*")} == {NOBODY}
    finally:
        run(python, "dbserver", "--path", path, "--stop")


def test_root_for_another_account(python, place):
    path = place / "db"
    name = pwd.getpwuid(NOBODY).pw_name
    try:
        good(python, "init", path, "--db-type", "mysql", "--option", f"server_user={name}")
        good(python, "dbserver", "--path", path, "--host", "0.0.0.0")
        assert owner_of_server(python, path) == NOBODY
        good(python, "ls", "--db", path)
        # The account gets at its data and at nothing else.
        assert run(python, "ls", "--db", path, prefix=as_nobody()).code != 0
        for name in ("keys", "log", "data"):
            listed = subprocess.run([*as_nobody(), "ls", path / name], capture_output=True, check=False)
            assert listed.returncode != 0
    finally:
        run(python, "dbserver", "--path", path, "--stop")


def test_another_account_that_can_not_get_there(python, place):
    place.chmod(0o700)
    name = pwd.getpwuid(NOBODY).pw_name
    done = run(python, "init", place / "db", "--db-type", "mysql", "--option", f"server_user={name}")
    assert (done.code, done.err.count("\n")) == (8, 1)
    assert f"the account {name}, which the server shall run as, can't reach {place}" in done.err
    assert list(place.iterdir()) == []


def test_only_root_can_name_another_account(python, place):
    os.chown(place, NOBODY, NOBODY)
    words = ("init", place / "db", "--db-type", "mysql", "--option", "server_user=root")
    done = run(python, *words, prefix=as_nobody())
    assert "only root can start a server as root" in done.err
    assert list(place.iterdir()) == []


def test_root_runs_no_program_that_another_user_names(python, place):
    place.chmod(0o755)
    home, notes = place / "home", place / "notes"
    programs = home / "bin"
    programs.mkdir(parents=True)
    (home / "share").symlink_to(Path(SERVER).resolve().parent.parent / "share")
    notes.touch()
    notes.chmod(0o666)
    for name in ("mariadbd", "mariadb-dump", "tee"):
        real = SERVER if name == "mariadbd" else shutil.which(name)
        (programs / name).write_text(f'#!/bin/sh\necho "$(id -u) {name} $*" >> {notes}\nexec {real} "$@"\n')
        (programs / name).chmod(0o755)
    for path in (home, programs):
        os.chown(path, NOBODY, NOBODY)
    path = home / "db"
    try:
        good(python, "init", path, "--db-type", "mysql", "--option", f"bindir={programs}", prefix=as_nobody())
        notes.write_text("")
        good(python, "init", path)
        good(python, "dbserver", "--path", path)
        good(python, "backup", place / "saved", "--db", path)
        ran = [line.split()[:2] for line in notes.read_text().splitlines()]
        assert {name for _, name in ran} == {"mariadbd", "mariadb-dump"}
        assert {uid for uid, _ in ran} == {str(NOBODY)}
        assert (place / "saved").stat().st_uid == 0
        good(python, "dbserver", "--path", path, "--stop")
        # Its owner leads to a folder of root's, to have the programs run as root.
        (path / "mysql").rename(path / "mine")
        (place / "of-root").mkdir()
        (path / "mysql").symlink_to(place / "of-root")
        notes.write_text("")
        for words in (("init", path), ("dbserver", "--path", path)):
            assert run(python, *words).code != 0
        assert notes.read_text() == ""
    finally:
        run(python, "dbserver", "--path", path, "--stop")
