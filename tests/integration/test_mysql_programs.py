"""Which programs serve a DB: those that its data were made with, wherever they are."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from balsam_program import here

from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.errors import BackendError, Corrupt, InvalidInput

SERVER = shutil.which("mariadbd", path=os.environ.get("PATH", "") + ":/usr/sbin")
pytestmark = pytest.mark.skipif(not SERVER, reason="no MariaDB server programs")
pytest.importorskip("MySQLdb")

SAYS = {
    "mysql": "mysqld  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)",
    "newer": "mariadbd  Ver 11.8.2-MariaDB for linux-systemd on x86_64",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return initialise(tmp_path_factory.mktemp("programs") / "db", "mysql").db


@pytest.fixture
def backend():
    return registry.load("mysql")


def stand_in(folder: Path, name: str, says: str) -> Path:
    """Make a program that only says what version it is."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    return program


def start(backend, db):
    return backend.start_server(db, "127.0.0.1", 3306)


def test_what_was_found_is_remembered_and_found_without_path(made, backend, monkeypatch, tmp_path):
    assert made.settings["variant"] == "mariadb"
    assert made.settings["series"].count(".") == 1
    assert "bindir" not in made.settings
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Path(start(backend, made).argv[0]).resolve() == Path(SERVER).resolve()


def test_a_folder_can_be_named_by_option_and_by_variable(tmp_path, backend, made, monkeypatch):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "mariadbd").symlink_to(SERVER)
    monkeypatch.setenv("BALSAM_MYSQL_BINDIR", str(elsewhere))
    assert start(backend, made).argv[0] == f"{elsewhere}/mariadbd"
    monkeypatch.delenv("BALSAM_MYSQL_BINDIR")
    assert initialise(made.path, options={"bindir": str(elsewhere)}).db.settings["bindir"] == str(elsewhere)
    assert initialise(made.path).db.settings["bindir"] == str(elsewhere)


def test_a_folder_without_programs_is_refused_in_one_line(tmp_path, monkeypatch):
    words = ("init", tmp_path / "db", "--db-type", "mysql")
    assert "holds neither mariadbd nor mysqld" in here.refused(*words, "--option", f"bindir={tmp_path}", code=12)
    line = here.refused(*words, env={"BALSAM_MYSQL_BINDIR": str(tmp_path / "none")}, code=12)
    assert "apt-get install mariadb-server-core mariadb-client" in line
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize(("kind", "name"), [("mysql", "mysqld"), ("newer", "mariadbd")])
def test_data_of_another_variant_or_series_are_not_touched(made, backend, tmp_path, monkeypatch, kind, name):
    stand_in(tmp_path / "bin", name, SAYS[kind])
    monkeypatch.setenv("BALSAM_MYSQL_BINDIR", str(tmp_path / "bin"))
    other = replace(made, settings={**made.settings, "bindir": str(tmp_path / "bin")})
    with pytest.raises(BackendError) as caught:
        start(backend, other)
    text = str(caught.value)
    assert f"were made with MariaDB {made.settings['series']}, and here is only" in text
    assert {"mysql": "MySQL 8.0", "newer": "MariaDB 11.8"}[kind] in text
    assert "BALSAM_MYSQL_BINDIR" in text


def test_a_program_that_fails_leaves_nothing(tmp_path):
    stand_in(tmp_path / "bin", "mysqld", SAYS["mysql"])
    with (tmp_path / "bin" / "mysqld").open("a") as program:
        program.write('case "$*" in *--initialize-insecure*) echo "[ERROR] [MY-1] no room" >&2; exit 1;; esac\n')
    line = here.refused("init", tmp_path / "db", "--db-type", "mysql", "--option", f"bindir={tmp_path}/bin", code=12)
    assert line == "MySQL 8.0 can't make its system tables: [ERROR] [MY-1] no room"
    assert not (tmp_path / "db").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_damaged_data_are_refused_and_left(made):
    data = made.path / "mysql" / "data"
    data.rename(data.with_name("aside"))
    try:
        with pytest.raises(Corrupt, match="restore it from a backup"):
            initialise(made.path)
        assert not data.exists()
    finally:
        data.with_name("aside").rename(data)


def test_an_account_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="no account 'nobody-here'"):
        initialise(tmp_path / "db", "mysql", {"server_user": "nobody-here"})
    assert not (tmp_path / "db").exists()
