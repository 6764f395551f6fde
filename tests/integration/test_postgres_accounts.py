"""PostgreSQL refuses to run as root: whom it runs as, where its files are, and what they then belong to."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from balsam_program import BALSAM, Program

from balsam_core.errors import BackendError

programs = pytest.importorskip("balsam_postgres.programs")
try:
    programs.find_server()
except BackendError as lacking:
    pytest.skip(str(lacking), allow_module_level=True)
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can choose whom the server runs as"),
    pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv (util-linux)"),
]
NOBODY = "nobody"
UID = pwd.getpwnam(NOBODY).pw_uid
AS_NOBODY = ("setpriv", f"--reuid={UID}", f"--regid={pwd.getpwnam(NOBODY).pw_gid}", "--clear-groups")


@functools.cache
def usable_python():
    """Return a Python that every account can use, with what it must be told; a person's own is in a closed folder."""
    path = os.pathsep.join(one for one in sys.path if Path(one).is_dir() and not one.startswith(sys.base_prefix))
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for program in (sys.executable, shutil.which(name, path="/usr/bin:/usr/local/bin")):
        # As the watchdog's child does it: it is root's when it starts.
        then = [program, "-c", "import balsam_core"]
        become = f"import os; os.setuid({UID}); import ctypes; os.execv({program!r}, {then!r})"
        if (
            program
            and subprocess.run(
                [program, "-c", become], check=False, env={"PYTHONPATH": path}, capture_output=True
            ).returncode
            == 0
        ):
            return program, {"PYTHONPATH": path}
    pytest.skip("this Python can't be used by other accounts")


@pytest.fixture
def place():
    """A directory that every account can pass through, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="balsam-accounts-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def balsam(*words, prefix=(), env=None):
    """Run the program; it must succeed."""
    return program(prefix).good(*words, env=env).out


def attempt(*words, prefix=(), env=None):
    return program(prefix)(*words, env=env)


def program(prefix):
    python, env = usable_python()
    return Program([*prefix, python, *BALSAM[1:]], env=env)


@contextlib.contextmanager
def serving(path, prefix=(), env=None):
    balsam("dbserver", "--path", path, prefix=prefix, env=env)
    try:
        yield int((path / "postgres" / "postmaster.pid").read_text().split()[0])
    finally:
        balsam("dbserver", "--stop", "--path", path, prefix=prefix, env=env)


def uid_of(pid):
    return Path(f"/proc/{pid}").stat().st_uid


def owners(path):
    return {file.lstat().st_uid for file in path.rglob("*")}


def test_an_ordinary_user_runs_it_as_himself(place):
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, UID, UID)
    env = {"HOME": str(home), **{name: str(home / name) for name in os.environ if name.startswith("XDG_")}}
    path = home / "db"
    balsam("init", path, "--db-type", "postgres", prefix=AS_NOBODY, env=env)
    with serving(path, prefix=AS_NOBODY, env=env) as pid:
        balsam("run", "--db", path, "--", "true", prefix=AS_NOBODY, env=env)
        assert balsam("-o", "ids", "ls", "--db", path, prefix=AS_NOBODY, env=env).split() == ["1"]
        assert uid_of(pid) == UID
    assert owners(path) == {UID}
    # Root may serve it as well, and it stays the user's.
    with serving(path) as pid:
        assert uid_of(pid) == UID
    assert owners(path / "postgres") == {UID}
    done = attempt(
        "init", home / "two", "--db-type", "postgres", "--option", "server_user=root", prefix=AS_NOBODY, env=env
    )
    assert (done.code, done.err.count("\n")) == (5, 1), done


def test_root_has_it_under_closed_folders_without_roots_rights(tmp_path):
    tmp_path.chmod(0o700)
    path = tmp_path / "db"
    balsam("init", path, "--db-type", "postgres", env={"BALSAM_SERVER_USER": ""})
    with serving(path) as pid:
        status = Path(f"/proc/{pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert "CapPrm:\t0000000000000000" in status
    assert owners(path) == {0}
    assert path.stat().st_mode & 0o777 == 0o700


def test_root_can_name_an_account(place):
    path = place / "db"
    balsam("init", path, "--db-type", "postgres", "--option", f"server_user={NOBODY}")
    with serving(path) as pid:
        balsam("run", "--db", path, "--", "true")
        assert uid_of(pid) == UID
    assert owners(path / "postgres") == {UID}
    assert path.stat().st_mode & 0o777 == 0o711
    for name in ("keys", "data", "log", "balsam.toml"):
        assert not (path / name).stat().st_mode & 0o077
    assert owners(path / "keys") == {0}


def test_without_namespaces_root_takes_the_usual_account(place):
    try:
        uid = pwd.getpwnam("postgres").pw_uid
    except KeyError:
        pytest.skip("needs the account postgres")
    (place / "bin").mkdir()
    (place / "bin" / "test").symlink_to(shutil.which("test"))  # and no unshare
    env = {"PATH": str(place / "bin"), "BALSAM_PG_BINDIR": str(programs.find_server().bindir)}
    path = place / "db"
    balsam("init", path, "--db-type", "postgres", env=env)
    with serving(path, env=env) as pid:
        assert uid_of(pid) == uid
    # Data of root's own is not given away.
    balsam("init", place / "closed", "--db-type", "postgres")
    done = attempt("dbserver", "--path", place / "closed", env=env)
    assert (done.code, done.err.count("\n")) == (12, 1), done
    assert "this system allows no user namespaces" in done.err


@pytest.mark.parametrize("name", ["no-such-account", "root", "nul\\0"])
def test_an_account_that_cannot_be_had_is_named(place, name):
    done = attempt("init", place / "db", "--db-type", "postgres", "--option", f"server_user={name}")
    assert (done.code, done.err.count("\n")) == (5, 1), done
    assert not (place / "db").exists()


def test_an_account_that_cannot_get_there_is_told_where(tmp_path):
    tmp_path.chmod(0o700)
    done = attempt("init", tmp_path / "db", "--db-type", "postgres", "--option", f"server_user={NOBODY}")
    assert (done.code, done.err.count("\n")) == (8, 1), done
    assert f"the account {NOBODY}, which the server shall run as, can't reach" in done.err
    assert list(tmp_path.iterdir()) == []


def test_root_runs_no_program_and_follows_no_link_of_another_user(place):
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, UID, UID)
    env = {"HOME": str(home), **{name: str(home / name) for name in os.environ if name.startswith("XDG_")}}
    path = home / "db"
    balsam("init", path, "--db-type", "postgres", prefix=AS_NOBODY, env=env)
    trap = home / "bin"
    trap.mkdir()
    for name in ("initdb", "postgres", "pg_dump", "pg_restore"):
        (trap / name).write_text(f"#!/bin/sh\nid -u >> {trap}/caught\necho 'postgres (PostgreSQL) 15.1'\n")
        (trap / name).chmod(0o755)
    config = path / "balsam.toml"
    config.write_text(config.read_text().replace("[settings]", f'[settings]\nbindir = "{trap}"'))
    assert str(trap) in config.read_text()
    for one in (trap, *trap.iterdir()):
        os.chown(one, UID, UID)
    for words in (("dbserver", "--path"), ("init",)):
        done = attempt(*words, path)
        assert (done.code, done.err.count("\n")) == (12, 1), done
        assert "root doesn't run what others may have put into" in done.err
    usual = {"BALSAM_PG_BINDIR": str(programs.find_server().bindir)}
    with serving(path, env=usual) as pid:
        assert uid_of(pid) == UID
        assert "root doesn't run" in attempt("backup", place / "saved", "--db", path).err
        balsam("backup", place / "saved", "--db", path, env=usual)
    assert not (trap / "caught").exists()

    (path / "log").rename(home / "log")
    (place / "elsewhere").mkdir(mode=0o700)
    (path / "log").symlink_to(place / "elsewhere")
    os.chown(path / "log", UID, UID, follow_symlinks=False)
    done = attempt("dbserver", "--path", path, env=usual)
    assert (done.code, done.err.count("\n")) == (8, 1), done
    assert "is a symbolic link of another user's, which root doesn't follow" in done.err
    assert list((place / "elsewhere").iterdir()) == []

    (path / "postgres").rename(home / "postgres")
    (path / "postgres").symlink_to(place / "elsewhere")
    (place / "elsewhere" / "PG_VERSION").write_text("15")
    (place / "elsewhere" / "global").mkdir()
    (place / "elsewhere" / "global" / "pg_control").touch()
    (path / "log").unlink()
    (home / "log").rename(path / "log")
    done = attempt("dbserver", "--path", path, env={"BALSAM_PG_BINDIR": str(programs.find_server(major=15).bindir)})
    assert (done.code, done.err.count("\n")) == (8, 1), done
    assert "let one own both" in done.err
    assert sorted(one.name for one in (place / "elsewhere").iterdir()) == ["PG_VERSION", "global"]
