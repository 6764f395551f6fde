from __future__ import annotations

import contextlib
import os
import stat

import pytest

from balsam_core.dbdir.directory import DBDir, atomic_write, make_tree, write_config
from balsam_core.errors import DBDirError, SchemaMismatch
from balsam_core.system.files import expand, read_regular, shown

ID = "0123456789abcdef" * 2


def still_open(pipe):
    try:
        os.read(pipe, 1)
    except BlockingIOError:
        return True
    return False


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


@pytest.mark.parametrize("path", ["", "  ", "a\0b", "~no-such-user-here/x"])
def test_impossible_paths(path):
    with pytest.raises(DBDirError):
        expand(path)


def test_current_directory_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(DBDirError, match="current directory is gone"):
        expand("db")


def test_odd_paths_are_shown_on_one_printable_line(tmp_path):
    assert shown("/a b/c") == "/a b/c"
    for path in ["/a\nb", "/a\udcffb", "/a\x1b[31mb"]:
        assert shown(path).isprintable()
        shown(path).encode()


def test_atomic_write_replaces_whole_and_leaves_nothing_else(tmp_path):
    file = tmp_path / "file"
    for content in (b"old" * 1000, b"new"):
        atomic_write(file, content)
        assert file.read_bytes() == content
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_atomic_write_replaces_a_link_and_not_its_target(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "file").symlink_to(target)
    atomic_write(tmp_path / "file", b"new")
    assert target.read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()


def test_atomic_write_that_fails_keeps_the_old_content(tmp_path, monkeypatch):
    file = tmp_path / "file"
    atomic_write(file, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_atomic_write_is_never_seen_half_done(tmp_path):
    file = tmp_path / "file"
    contents = [bytes([number]) * 100_000 for number in range(2)]
    atomic_write(file, contents[0])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # reads until the pipe closes; exits 1 at the first torn read
        os.close(writer)
        os.set_blocking(reader, False)
        status = 2
        with contextlib.suppress(Exception):
            torn = False
            while not torn and still_open(reader):
                torn = file.read_bytes() not in contents
            status = int(torn)
        os._exit(status)
    os.close(reader)
    for number in range(300):
        atomic_write(file, contents[number % 2])
    os.close(writer)
    assert os.waitpid(child, 0)[1] == 0


def test_read_regular_has_a_limit(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_regular(file, limit=5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(file, limit=4)
