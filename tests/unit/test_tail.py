"""The last lines of files, and what comes after them."""

from __future__ import annotations

import pytest

from balsam_core.system import tail
from balsam_core.system.tail import TailedFile


@pytest.fixture
def file(tmp_path):
    opened = TailedFile(tmp_path / "file")
    yield opened
    opened.close()


def last(file, lines):
    return b"".join(file.read_last(lines))


def new(file):
    return b"".join(file.read_new())


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("lines", [0, 1, 2, 3, 4, 5, None])
def test_the_last_lines_are_those_of_the_text(file, monkeypatch, chunk, end, lines):
    monkeypatch.setattr(tail, "CHUNK", chunk)
    text = b"one\n\nthree\nfour" + end
    file.path.write_bytes(text)
    whole = text.splitlines(keepends=True)
    assert last(file, lines) == b"".join(whole if lines is None else whole[len(whole) - min(lines, len(whole)) :])
    assert file.has_more == (lines is not None and lines < len(whole))


def test_an_empty_and_a_missing_file_have_no_lines(file):
    assert last(file, 3) == b""
    file.path.write_bytes(b"")
    assert (last(file, 3), new(file), file.has_more) == (b"", b"", False)


def test_what_is_written_later_comes_once(file):
    assert new(file) == b""
    file.path.write_bytes(b"a\n")
    assert (new(file), new(file)) == (b"a\n", b"")
    with file.path.open("ab") as writer:
        writer.write(b"b")
    assert new(file) == b"b"


def test_a_file_that_is_cut_is_read_from_its_beginning(file):
    file.path.write_bytes(b"long text\n")
    assert new(file) == b"long text\n"
    file.path.write_bytes(b"new\n")
    assert new(file) == b"new\n"


def test_a_file_that_is_replaced_is_read_to_its_end_first(file):
    file.path.write_bytes(b"1\n")
    assert last(file, 9) == b"1\n"
    with file.path.open("ab") as writer:
        writer.write(b"2\n")
    file.path.rename(file.path.with_name("file.1"))
    file.path.write_bytes(b"3\n")
    assert new(file) == b"2\n3\n"
