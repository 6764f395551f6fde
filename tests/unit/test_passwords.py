"""The password of a database account: in the file, told to this process, or in the environment."""

from __future__ import annotations

import os

import pytest

from balsam_core.dbdir import passwords
from balsam_core.dbdir.directory import DBDir
from balsam_core.dbdir.passwords import password_file, read_password, store_password
from balsam_core.errors import DBDirError, InvalidInput
from balsam_core.system.private_files import write_private


@pytest.fixture
def adopted(tmp_path, monkeypatch):
    """A DB on a server that somebody else runs."""
    monkeypatch.setattr(passwords, "_passwords_in_memory", {})
    return DBDir(path=tmp_path, db_type="postgres", id="0" * 32, settings={"url": "postgresql://u@h/d"})


@pytest.mark.parametrize("password", ["secret", "Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n \N{SNOWMAN}", " ends "])
def test_a_stored_password_is_read_again_whatever_its_letters(adopted, password):
    store_password(adopted, password)
    assert password_file(adopted).stat().st_mode & 0o777 == 0o600
    assert read_password(adopted) == password


def test_one_that_is_not_kept_is_known_to_this_process_only(adopted, monkeypatch):
    store_password(adopted, "old")
    store_password(adopted, "new", keep=False)
    assert not password_file(adopted).exists()
    assert read_password(adopted) == "new"
    passwords._passwords_in_memory.clear()
    assert read_password(adopted) is None
    monkeypatch.setenv("BALSAM_DB_PASSWORD", "told")
    assert read_password(adopted) == "told"


def test_of_a_server_of_balsams_own_only_the_file_counts(tmp_path, monkeypatch):
    db = DBDir(path=tmp_path, db_type="postgres", id="0" * 32)
    monkeypatch.setenv("BALSAM_DB_PASSWORD", "told")
    with pytest.raises(DBDirError, match="is missing"):
        read_password(db)
    write_private(password_file(db), b"mine\n")  # as older versions ended it
    assert read_password(db) == "mine"
    password_file(db).write_bytes(b"\xff")
    with pytest.raises(DBDirError, match="is damaged"):
        read_password(db)


@pytest.mark.parametrize(
    ("data", "why"), [(b"gr\xfcn", "not in UTF-8"), (b"a\nb", "line break"), (b"a\r", "line break")]
)
def test_what_can_be_no_password_is_refused_before_it_is_used(adopted, monkeypatch, data, why):
    with pytest.raises(InvalidInput, match=why):
        store_password(adopted, data.decode(errors="surrogateescape"))
    assert not password_file(adopted).exists()
    monkeypatch.setitem(os.environb, b"BALSAM_DB_PASSWORD", data)
    with pytest.raises(InvalidInput, match=f"BALSAM_DB_PASSWORD .*{why}"):
        read_password(adopted)
