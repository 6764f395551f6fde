from __future__ import annotations

import os
import stat

import pytest

from balsam_core.dbdir.directory import DBDir, make_tree, write_config
from balsam_core.errors import DBDirError, SchemaMismatch

ID = "0123456789abcdef" * 2


def made(path, **settings):
    path.mkdir(exist_ok=True)
    db = DBDir(path=path, db_type="sqlite", id=ID, settings=settings)
    write_config(db)
    return db


def test_what_is_written_is_read(tmp_path):
    settings = {"a": "plain", "b": 'quotes " and \\ and \n and \x7f and \0', "odd key.": "π🎈"}
    db = made(tmp_path / "db", **settings)
    again = DBDir.open(tmp_path / "db")
    assert again == db
    assert dict(again.settings) == settings


def test_tilde_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made(tmp_path / "db")
    assert DBDir.open("~/db").path == tmp_path / "db"


def test_relative_path_becomes_absolute(tmp_path, monkeypatch):
    made(tmp_path / "db")
    monkeypatch.chdir(tmp_path)
    assert DBDir.open("db").path == tmp_path / "db"


def test_names_of_the_files(tmp_path):
    db = made(tmp_path / "db")
    names = [db.config_file, db.address_file, db.keys, db.data, db.log]
    assert [path.name for path in names] == ["balsam.toml", "dbwriter_address", "keys", "data", "log"]
    assert {path.parent for path in names} == {db.path}


def test_tree_is_private_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        make_tree(tmp_path)
        make_tree(tmp_path)
        made(tmp_path)
    finally:
        os.umask(old)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {
        "data": 0o700,
        "log": 0o700,
        "keys": 0o700,
        "balsam.toml": 0o600,
    }


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, ["does not exist", "balsam init"]),
        (lambda path: path.write_text("x"), ["is a file"]),
        (lambda path: path.mkdir(), ["is no Balsam DB", "balsam init"]),
        (lambda path: (path / "balsam.toml").mkdir(parents=True), ["can't be read", "no regular file"]),
    ],
    ids=["missing", "file", "empty", "directory-as-config"],
)
def test_paths_that_are_no_db_are_told_apart(tmp_path, make, words):
    path = tmp_path / "db"
    make(path)
    with pytest.raises(DBDirError) as caught:
        DBDir.open(path)
    assert type(caught.value) is DBDirError
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_pipe_as_config_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "balsam.toml")
    with pytest.raises(DBDirError, match="no regular file"):
        DBDir.open(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff garbage",
        b"format = ",
        b"format = true\n",
        b'format = "1"\n',
        b"format = 0\n",
        b"format = 1\n",
        b'format = 1\ndb_type = "../x"\n',
        b'format = 1\ndb_type = "sqlite"\nid = 7\n',
        b'format = 1\ndb_type = "sqlite"\nid = "short"\n',
        b'format = 1\ndb_type = "sqlite"\nid = "%s"\nsettings = 3\n' % ID.encode(),
        b'format = 1\ndb_type = "sqlite"\nid = "%s"\n[settings]\na = 3\n' % ID.encode(),
        b"a = " + b"[" * 20_000,
        b"#" * 70_000,
    ],
)
def test_garbage_is_one_line_and_stays(tmp_path, content):
    file = tmp_path / "balsam.toml"
    file.write_bytes(content)
    with pytest.raises(DBDirError) as caught:
        DBDir.open(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert file.read_bytes() == content


def test_newer_format_is_a_schema_mismatch(tmp_path):
    (tmp_path / "balsam.toml").write_text("format = 2\n")
    with pytest.raises(SchemaMismatch, match=r"format 2.*upgrade"):
        DBDir.open(tmp_path)
