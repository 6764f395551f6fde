"""The checker of exactly-once: right about an honest database, and it finds each kind of tampering."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from exact import Report, Row, check, read_journal, rows_by_api, rows_by_sqlite, writers

from balsam_core.admin.initialise import initialise
from balsam_core.testing.tools import wait_until

WRITERS, COUNT = 3, 12


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A database that writers have filled, and their journals."""
    directory = tmp_path_factory.mktemp("exact")
    db = initialise(directory / "db").db.path
    with writers(db, WRITERS, directory, count=COUNT, kill_every=4) as clients:
        clients.begin()
        clients.finish()
        return db, clients.journals


@pytest.fixture
def tampered(written, tmp_path):
    """Changes a copy of the database by SQL; returns the report about it."""
    db, journals = written
    (tmp_path / "db").mkdir()

    def change(*statements) -> Report:
        with (
            closing(sqlite3.connect(db / "db.sqlite3")) as source,
            closing(sqlite3.connect(tmp_path / "db" / "db.sqlite3")) as copy,
        ):
            source.backup(copy)
            for statement in statements:
                copy.execute(statement)
            copy.commit()
        return check(journals, rows_by_sqlite(tmp_path / "db"))

    return change


def test_honest_database_is_exact(written):
    db, journals = written
    rows = rows_by_sqlite(db)
    assert sorted(rows_by_api(db)) == sorted(rows)
    report = check(journals, rows)
    report.assert_exact()
    kills = WRITERS * 3
    assert (report.sent, report.acked) == (WRITERS * COUNT + kills,) * 2
    assert len(rows) == WRITERS * COUNT
    assert sum(row.state == "USER_KILLED" for row in rows) == kills
    assert 0 < report.p50 <= report.p99 <= report.worst <= report.longest_wait
    assert report.longest_stall <= report.longest_wait
    assert report.throughput > 0
    assert "exact" in str(report)


def test_lost_write_is_found(tampered):
    report = tampered("DELETE FROM jobs WHERE name = 'w1-5'")
    assert report.faults == {"lost": ["w1-5"]}
    with pytest.raises(AssertionError, match="w1-5"):
        report.assert_exact()


def test_doubled_write_is_found(tampered):
    report = tampered(
        "CREATE TEMP TABLE twice AS SELECT * FROM jobs WHERE name = 'w2-3'",
        "UPDATE twice SET id = 9999",
        "INSERT INTO jobs SELECT * FROM twice",
    )
    assert report.faults == {"doubled": ["w2-3"]}


def test_other_id_is_found(tampered):
    assert tampered("UPDATE jobs SET id = 9999 WHERE name = 'w0-1'").faults == {"misnumbered": ["w0-1"]}


def test_stranger_is_found(tampered):
    report = tampered("UPDATE jobs SET name = 'w0-77' WHERE name = 'w0-1'")
    assert report.faults == {"lost": ["w0-1"], "unsent": ["w0-77"]}


def test_undone_kill_is_found(tampered):
    assert tampered("UPDATE jobs SET state = 'READY' WHERE name = 'w0-4'").faults == {"killed_wrongly": ["w0-4"]}


@pytest.fixture
def journal(tmp_path):
    """Writes the journal of the writer w0; returns its path."""

    def write(*lines):
        path = tmp_path / "w0.journal"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def test_unknown_outcomes_may_be_either(journal):
    path = journal(
        *("add 0 sent 1.0", "add 0 failed 2.0 outcome-unknown it broke"),
        *("add 1 sent 2.0", "add 1 failed 3.0 outcome-unknown it broke"),
        "add 2 sent 3.0",
    )
    report = check([path], [Row(1, "w0-1", "READY"), Row(2, "w0-2", "READY")])
    report.assert_exact()
    assert (report.errors, report.open, report.applied) == ({"outcome-unknown": 2}, 1, 2)


def test_applied_though_denied_is_found(journal):
    path = journal("add 0 sent 1.0", "add 0 failed 2.0 unavailable the disk is full")
    assert check([path], []).faults == {}
    assert check([path], [Row(1, "w0-0", "READY")]).faults == {"denied": ["w0-0"]}


def test_kill_that_was_applied_twice_is_found(journal):
    path = journal("add 0 sent 1.0", "add 0 acked 2.0 7", "kill 0 sent 3.0", "kill 0 acked 4.0 0")
    assert check([path], [Row(7, "w0-0", "USER_KILLED")]).faults == {"killed_wrongly": ["w0-0"]}


def test_times(journal):
    path = journal(
        *("add 0 sent 1.0", "add 0 acked 1.5 1", "add 1 sent 2.0", "add 1 failed 7.0 unavailable x"),
        *("add 2 sent 7.0", "add 2 acked 9.0 2"),
    )
    report = check([path], [Row(1, "w0-0", "READY"), Row(2, "w0-2", "READY")])
    assert (report.longest_stall, report.longest_wait, report.worst) == (7.5, 7.5, 2.0)
    assert report.throughput == 2 / 8


def test_line_cut_short_by_a_kill_is_ignored(journal):
    path = journal("add 0 sent 1.0")
    with path.open("a") as file:
        file.write("add 0 acked 1.5 1")
    assert read_journal(path)["add", 0].answer is None


def test_killed_and_stopped_writers(tmp_path):
    db = initialise(tmp_path / "db").db.path
    with writers(db, 2, tmp_path, timeout=30) as clients:
        clients.begin()
        wait_until(lambda: clients.acked > 10)
        clients.processes[0].kill()
        seen = clients.acked
        early = clients.snapshot(tmp_path / "early")
        wait_until(lambda: clients.acked > seen + 10)
        clients.stop()
        clients.finish()
        report = check(clients.journals, rows_by_sqlite(db))
        before = check(early, rows_by_sqlite(db), ended=False)
    before.assert_exact()
    report.assert_exact()
    assert 10 < before.acked < report.acked
    assert report.open <= 1
