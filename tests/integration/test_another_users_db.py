"""A DB, or a file of one, that this user may not use: commands say whose it is, and never to restore a backup."""

from __future__ import annotations

import os
import shutil

import pytest
from balsam_program import BALSAM, Program

from balsam_core import Job, open_db
from balsam_core.errors import Unavailable

STRANGER = 54321
COMMANDS = {
    "ls": [],
    "job": ["--command", "true"],
    "status": [],
    "launcher": ["--consume-all"],
}


@pytest.fixture(scope="module")
def balsam():
    """The program without root's right to open all files."""
    if os.geteuid() != 0:
        return Program(BALSAM)
    setpriv = shutil.which("setpriv") or pytest.skip("setpriv is missing")
    return Program([setpriv, "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", *BALSAM])


@pytest.fixture
def other(path):
    """Somebody else's DB, where this is root; else one's own."""
    if os.geteuid() == 0:
        for folder, _, files in os.walk(path):
            for name in (".", *files):
                os.chown(os.path.join(folder, name), STRANGER, STRANGER)  # noqa: PTH118
    yield path
    for folder in (path, path / "keys", path / "log"):
        folder.chmod(0o700)


def close(file):
    file.chmod(0)


def assert_permission_is_told(balsam, db, *words, codes=(8,)):
    done = balsam(*words, db=db)
    assert done.code in codes, done
    assert "ermission" in done.error, done
    assert "backup" not in done.error, done
    owner = f"belongs to the user with the number {STRANGER}" if os.geteuid() == 0 else "yours"
    assert owner in done.error, done


def test_a_closed_directory(balsam, other, tmp_path):
    close(other)
    for command, words in COMMANDS.items():
        assert_permission_is_told(balsam, other, command, *words)
    assert_permission_is_told(balsam, other, "init", other)
    assert_permission_is_told(balsam, other, "backup", tmp_path / "saved")
    for words in ([], ["--status"], ["--stop"]):
        assert_permission_is_told(balsam, other, "dbserver", f"--path={other}", *words)


@pytest.mark.parametrize("name", ["balsam.toml", "db.sqlite3"])
def test_a_closed_file(balsam, other, tmp_path, name):
    other.chmod(0o755)
    close(other / name)
    for command, words in COMMANDS.items():
        if (command, name) != ("launcher", "db.sqlite3"):  # its log can't be made first
            assert_permission_is_told(balsam, other, command, *words)
    assert_permission_is_told(balsam, other, "backup", tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_closed_log_folder_or_directory_to_write(balsam, other):
    for folder in (other, other / "log"):
        folder.chmod(0o777)
    (other / "db.sqlite3").chmod(0o666)
    (other / "balsam.toml").chmod(0o644)
    (other / "dbwriter_address").chmod(0o644)
    close(other / "log")
    assert_permission_is_told(balsam, other, "launcher", "--consume-all")
    other.chmod(0o555)
    for words in ([], ["--foreground"], ["--reset"]):
        assert_permission_is_told(balsam, other, "dbserver", f"--path={other}", *words)


def test_a_closed_address_names_its_owner(balsam, other):
    other.chmod(0o755)
    for name in ("db.sqlite3", "balsam.toml"):
        (other / name).chmod(0o644)
    close(other / "dbwriter_address")
    done = balsam("status", db=other)
    assert done.code == Unavailable.exit_code
    assert "permission denied" in done.out
    assert "balsam init" not in done.out


def test_a_backup_that_is_closed_is_not_damaged(balsam, other, tmp_path):
    saved = tmp_path / "saved"
    saved.write_bytes(b"x")
    if os.geteuid() == 0:
        os.chown(saved, STRANGER, STRANGER)
    close(saved)
    error = balsam.refused("restore", saved, tmp_path / "new", code=5)
    assert "permission denied" in error


def test_a_closed_log_of_sqlite_is_no_damage(balsam, path):
    with open_db(path) as db:
        db.jobs.add(Job(name="one", command="true"))
        wal = path / "db.sqlite3-wal"
        assert wal.stat().st_size
        if os.geteuid() == 0:
            os.chown(wal, STRANGER, STRANGER)
        close(wal)
        done = balsam("ls", db=path)
        assert done.code == Unavailable.exit_code, done
        assert "permissions" in done.error
        assert "backup" not in done.error
        wal.chmod(0o600)
