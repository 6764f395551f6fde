"""Small shared files: paths, whole writing, renaming without replacing."""

from __future__ import annotations

import contextlib
import os
import stat
import threading

import pytest

from balsam_core.errors import DBDirError
from balsam_core.system.files import atomic_write, expand, read_regular, rename_new, shown


def still_open(pipe):
    try:
        os.read(pipe, 1)
    except BlockingIOError:
        return True
    return False


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


@pytest.fixture(params=[True, False], ids=["hard links", "no hard links"])
def _links(request, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    if not request.param:
        monkeypatch.setattr(os, "link", refused)


@pytest.mark.usefixtures("_links")
def test_renamed_file_has_one_name(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"content")
    rename_new(source, target)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"content"
    assert target.stat().st_nlink == 1


@pytest.mark.usefixtures("_links")
@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("there", ["file", "directory", "link"])
def test_renaming_replaces_nothing(tmp_path, kind, there):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir() if kind == "directory" else source.touch()
    {"file": target.touch, "directory": target.mkdir, "link": lambda: target.symlink_to("nowhere")}[there]()
    before = target.lstat()
    with pytest.raises(FileExistsError):
        rename_new(source, target)
    assert source.exists()
    assert os.path.samestat(target.lstat(), before)


def test_directory_is_renamed(tmp_path):
    (tmp_path / "source" / "inside").mkdir(parents=True)
    rename_new(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target" / "inside").is_dir()
    assert not (tmp_path / "source").exists()


@pytest.mark.usefixtures("_links")
def test_of_many_who_rename_to_one_name_one_wins(tmp_path):
    sources = [tmp_path / f"source{number}" for number in range(8)]
    for source in sources:
        source.write_text(source.name)
    gate = threading.Barrier(len(sources))
    winners = []

    def rename(source):
        gate.wait()
        with contextlib.suppress(FileExistsError):
            rename_new(source, tmp_path / "target")
            winners.append(source)

    threads = [threading.Thread(target=rename, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [winner.name for winner in winners] == [(tmp_path / "target").read_text()]
    assert sum(source.exists() for source in sources) == len(sources) - 1


def test_lost_answer_of_the_file_server_is_a_success(tmp_path, monkeypatch):
    link = os.link

    def answer_lost(*names):
        link(*names)
        raise FileExistsError

    monkeypatch.setattr(os, "link", answer_lost)
    (tmp_path / "source").touch()
    rename_new(tmp_path / "source", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_failed_rename_leaves_the_target_free(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(type(tmp_path), "replace", refused)
    (tmp_path / "source").touch()
    with pytest.raises(OSError, match="cross-device"):
        rename_new(tmp_path / "source", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_with_another_name_replaces_no_foreign_file(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("ours")
    os.link(source, tmp_path / "another name")
    target.write_text("foreign")
    with pytest.raises(FileExistsError):
        rename_new(source, target)
    assert (source.read_text(), target.read_text()) == ("ours", "foreign")
