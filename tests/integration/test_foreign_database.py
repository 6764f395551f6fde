"""A database that belongs to another DB directory is used by nobody, nor a file that was replaced while it was open."""

from __future__ import annotations

import shutil

import pytest
from balsam_program import here
from sqlalchemy import text

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.errors import BalsamError, Conflict, Corrupt
from balsam_core.model.calls import CountJobs
from balsam_core.watchdog import control
from balsam_sqlite.engine import make_engine

FOREIGN = "belongs to another DB directory"
ID_OF_ANOTHER = "0123456789abcdef" * 2


@pytest.fixture
def two(tmp_path):
    """Two DBs; the second has a job."""
    one, other = (initialise(tmp_path / name, "sqlite").db for name in ("one", "other"))
    with open_db(other.path) as db:
        db.jobs.add(Job(name="foreign", command="true"))
    return one, other


@pytest.fixture
def foreign(two):
    """A DB whose file was replaced by another DB's."""
    one, other = two
    shutil.copy(other.path / "db.sqlite3", one.path / "db.sqlite3")
    return one


def put_in_place(source, db):
    """Put a copy of a database file in the place of another one, which others may have open."""
    copy = db.path / "copy"
    shutil.copy(source, copy)
    copy.replace(db.path / "db.sqlite3")


def names(db):
    return [job.name for job in db.jobs.order_by("id")]


def test_it_is_neither_read_nor_written(foreign):
    before = (foreign.path / "db.sqlite3").read_bytes()
    with pytest.raises(Conflict, match=FOREIGN), open_db(foreign.path) as db:
        db.jobs.count()
    for role in ("owner", "writer", "reader", "server"):
        with pytest.raises(Conflict, match=FOREIGN):
            make_engine(foreign, role)
    for command in (
        ["ls"],
        ["status"],
        ["job", "--command", "true"],
        ["backup", foreign.path / "b"],
        ["init", foreign.path],
    ):
        done = here(*command, db=None if command[0] == "init" else foreign.path)
        assert (done.code, FOREIGN in done.err) == (Conflict.exit_code, True), done
    assert sorted(file.name for file in foreign.path.glob("db.sqlite3*")) == ["db.sqlite3"]
    assert (foreign.path / "db.sqlite3").read_bytes() == before


def test_no_server_starts_on_it(foreign):
    with pytest.raises(BalsamError, match=FOREIGN):
        control.start(foreign)
    assert control.describe(foreign).state == "stopped"


@pytest.mark.parametrize("left", [True, False], ids=["with a log", "without"])
def test_a_file_that_replaces_an_open_one_is_neither_read_nor_written(two, left):
    one, other = two
    with open_db(one.path) as db:
        db.jobs.add(Job(name="ours", command="true"))
        put_in_place(other.path / "db.sqlite3", one)
        if not left:
            for suffix in ("-wal", "-shm"):
                (one.path / f"db.sqlite3{suffix}").unlink()
        before = (one.path / "db.sqlite3").read_bytes()
        for call in (db.jobs.count, lambda: db.jobs.add(Job(name="lost", command="true"))):
            with pytest.raises(Conflict, match=FOREIGN):
                call()
    assert (one.path / "db.sqlite3").read_bytes() == before


def test_a_file_that_is_gone_is_not_written_any_more(two):
    one, _ = two
    with open_db(one.path) as db:
        db.jobs.add(Job(name="ours", command="true"))
        (one.path / "db.sqlite3").rename(one.path / "elsewhere")
        with pytest.raises(Corrupt, match="is missing"):
            db.jobs.add(Job(name="lost", command="true"))
        (one.path / "elsewhere").rename(one.path / "db.sqlite3")
        db.jobs.add(Job(name="later", command="true"))
        assert names(db) == ["ours", "later"]


def test_an_open_db_goes_on_with_its_own_file_restored(two, tmp_path):
    _, db_dir = two
    shutil.copy(db_dir.path / "db.sqlite3", tmp_path / "saved")
    with open_db(db_dir.path) as db:
        assert names(db) == ["foreign"]
        put_in_place(tmp_path / "saved", db_dir)
        db.jobs.add(Job(name="later", command="true"))
    with open_db(db_dir.path) as db:
        assert names(db) == ["foreign", "later"]


def test_a_server_ends_when_its_file_is_replaced_and_none_starts_on_a_foreign_one(two):
    one, other = two
    control.start(one)
    try:
        with open_db(one.path) as db:
            db.jobs.add(Job(name="ours", command="true"))
            put_in_place(other.path / "db.sqlite3", one)
            before = (one.path / "db.sqlite3").read_bytes()
            with pytest.raises(Conflict, match=FOREIGN):
                db.jobs.count()
            with pytest.raises(BalsamError) as caught:
                db.jobs.add(Job(name="lost", command="true"))
        assert FOREIGN in str(caught.value)
        assert (one.path / "db.sqlite3").read_bytes() == before
    finally:
        control.stop(one)
    assert (one.path / "db.sqlite3").read_bytes() == before


def test_a_server_goes_on_with_its_own_file_restored(two, tmp_path):
    _, db_dir = two
    shutil.copy(db_dir.path / "db.sqlite3", tmp_path / "saved")
    control.start(db_dir)
    try:
        with open_db(db_dir.path) as db:
            assert names(db) == ["foreign"]
            for suffix in ("-wal", "-shm"):
                (db_dir.path / f"db.sqlite3{suffix}").unlink(missing_ok=True)
            put_in_place(tmp_path / "saved", db_dir)
            db.jobs.add(Job(name="later", command="true"))
            assert names(db) == ["foreign", "later"]
    finally:
        control.stop(db_dir)


def test_each_new_connection_of_each_backend_asks_whose_database_it_is(each_db, tmp_path):
    """As when somebody restores another DB's tables into the database that this one has adopted."""
    backend = registry.load(each_db.db_type)
    with backend.open_transport(each_db) as transport:
        assert transport.run(CountJobs()) == 0
        engine = backend.create_engine(each_db, "owner")
        with engine.begin() as conn:
            conn.execute(text(f"UPDATE meta SET value = '{ID_OF_ANOTHER}' WHERE name = 'db_id'"))
        engine.dispose()
        native = getattr(transport, "_direct", transport)
        with native.engine.connect(), pytest.raises(Conflict, match=FOREIGN):  # the first connection is in use
            transport.run(CountJobs())
    for command in (["ls"], ["job", "--command", "true"], ["backup", tmp_path / "saved"]):
        done = here(*command, db=each_db.path)
        assert (done.code, FOREIGN in done.err) == (Conflict.exit_code, True), done
    assert not (tmp_path / "saved").exists()
