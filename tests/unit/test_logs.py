from __future__ import annotations

import logging
import os
import re

import pytest

from balsam_core.system import logs


@pytest.fixture(autouse=True)
def _restored():
    level = logging.getLogger().level
    yield
    logs.close()
    logging.getLogger().setLevel(level)


def test_each_line_is_dated_in_utc_and_says_where_it_comes_from(tmp_path):
    path = logs.configure(tmp_path, "launcher", context="db=/a%20b")
    logging.getLogger("balsam_core.x").info("started %d", 3)
    line = path.read_text()
    form = rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z INFO pid={os.getpid()} db=/a%20b balsam_core\.x: started 3\n"
    assert re.fullmatch(form, line)


def test_file_is_named_after_the_run_and_private(tmp_path):
    path = logs.configure(tmp_path, "launcher")
    assert re.fullmatch(rf"launcher_\d{{8}}T\d{{6}}Z_[A-Za-z0-9.-]+_{os.getpid()}\.log", path.name)
    assert path.stat().st_mode & 0o777 == 0o600


def test_nobody_can_forge_a_record(tmp_path):
    path = logs.configure(tmp_path, "launcher")
    logging.getLogger("x").warning("job %s", "a\n2026-01-01T00:00:00.000Z INFO root: all is well\r")
    assert len(path.read_text().splitlines()) == 1


def test_a_name_that_is_not_utf_8_is_written_escaped(tmp_path, capsys):
    path = logs.configure(tmp_path, "server", context="db=/tmp/\udcff")
    logging.getLogger("x").info("is lost")
    logs.close()
    assert r"db=/tmp/\udcff x: is lost" in path.read_text()
    assert capsys.readouterr().err == ""


def test_tracebacks_are_indented(tmp_path):
    path = logs.configure(tmp_path, "launcher")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    first, *rest = path.read_text().splitlines()
    assert first.endswith("it failed")
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_files_are_rotated(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_MAX_BYTES", 500)
    path = logs.configure(tmp_path, "launcher")
    for number in range(100):
        logging.getLogger("x").info("line %d", number)
    assert len(list(tmp_path.iterdir())) == 6
    assert all(file.stat().st_size <= 600 for file in tmp_path.iterdir())
    assert "line 99" in path.read_text()


def test_configuring_again_moves_to_the_new_file(tmp_path):
    first = logs.configure(tmp_path, "one")
    second = logs.configure(tmp_path, "two")
    logging.getLogger("x").info("here")
    assert first.read_text() == ""
    assert "here" in second.read_text()


def test_old_files_of_a_name_are_removed_where_that_is_asked_for(tmp_path):
    for day in range(10, 20):
        (tmp_path / f"server_202611{day}T000000Z_host_1.log").touch()
    (tmp_path / "dbserver_20261101T000000Z_host_1.log").touch()
    new = logs.configure(tmp_path, "server", keep=3)
    left = sorted(path.name for path in tmp_path.glob("server_*"))
    assert left == sorted([new.name, *(f"server_202611{day}T000000Z_host_1.log" for day in (17, 18, 19))])
    assert (tmp_path / "dbserver_20261101T000000Z_host_1.log").exists()
