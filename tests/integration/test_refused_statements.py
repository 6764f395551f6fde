"""A database that refuses Balsam's statements: its text reaches everybody at once, and nothing is repeated."""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
import subprocess
import time

import pytest
import sqlalchemy as sa
from balsam_program import BALSAM, here
from resources import is_alive
from served_db import ServedDB

from balsam_core import Job, open_db
from balsam_core.backends import registry
from balsam_core.errors import BackendError, SchemaMismatch
from balsam_core.model.calls import GetLaunchers
from balsam_core.testing.tools import wait_until

AT_ONCE = 10.0  # seconds, on a busy machine; a repeated call takes 120
RENAME_COLUMN = "ALTER TABLE jobs RENAME COLUMN command TO renamed"
RENAME_BACK = "ALTER TABLE jobs RENAME COLUMN renamed TO command"
RENAME_REQUESTS = "ALTER TABLE processed_requests RENAME TO renamed"
RESTORE_REQUESTS = "ALTER TABLE renamed RENAME TO processed_requests"


def change(db, *statements):
    """Change the database as its owner does, whoever uses it."""
    if db.db_type == "sqlite":
        with contextlib.closing(sqlite3.connect(db.path / "db.sqlite3", timeout=60)) as connection, connection:
            for statement in statements:
                connection.execute(statement)
        return
    engine = registry.load(db.db_type).create_engine(db, "owner")
    with engine.begin() as conn:
        for statement in statements:
            conn.execute(sa.text(statement))
    engine.dispose()


@contextlib.contextmanager
def refused(error, match):
    began = time.monotonic()
    with pytest.raises(error, match=match) as caught:
        yield
    assert time.monotonic() - began < AT_ONCE
    text = str(caught.value)
    assert "\n" not in text
    for boilerplate in ("[SQL", "sqlalche.me", "Background on", "[parameters"):
        assert boilerplate not in text


@pytest.fixture
def served(tmp_path):
    made = ServedDB(tmp_path / "db")
    made.start()
    yield made.dir
    made.close()


def add(db, name="x"):
    return db.jobs.add(Job(name=name, command="true"))


def check_column(directory):
    with open_db(directory.path) as db:
        add(db)
        assert db.jobs.count() == 1
        change(directory, RENAME_COLUMN)
        for _ in range(2):
            with refused(BackendError, "command"):
                add(db)
            with refused(BackendError, "command"):
                list(db.jobs)
        assert "command" in here.refused("ls", db=directory.path, code=BackendError.exit_code)
        assert "command" in here.refused(
            "job", "--name", "y", "--command", "true", db=directory.path, code=BackendError.exit_code
        )
        change(directory, RENAME_BACK)
        add(db, "again")
        assert [job.name for job in db.jobs] == ["x", "again"]


def test_a_renamed_column(each_db):
    check_column(each_db)


def test_a_renamed_column_behind_the_server(served):
    before = open_db(served.path)
    check_column(served)
    before.close()


def check_requests(directory):
    with open_db(directory.path) as db:
        add(db)
        change(directory, RENAME_REQUESTS)
        with refused(BackendError, "processed_requests"):
            add(db, "never")
        assert db.jobs.count() == 1, "reads go on"
        change(directory, RESTORE_REQUESTS)
        add(db, "again")
        assert [job.name for job in db.jobs] == ["x", "again"]


def test_a_missing_table_of_requests(each_db):
    check_requests(each_db)


def test_a_missing_table_of_requests_behind_the_server(served):
    check_requests(served)


def check_versions(directory):
    with open_db(directory.path) as db:
        add(db)
        change(directory, RENAME_COLUMN, "UPDATE schema_version SET version_num = '9999'")
        with refused(SchemaMismatch, "newer than this program"):
            add(db)
        with refused(SchemaMismatch, "newer than this program"):
            list(db.jobs)
        change(directory, "DROP TABLE schema_version")
        with refused(SchemaMismatch, "has no tables.*balsam init"):
            add(db)


def test_another_schema_is_told_as_such(each_db):
    check_versions(each_db)


def test_another_schema_is_told_as_such_behind_the_server(served):
    check_versions(served)


def test_a_right_that_was_revoked(make_db):
    directory = make_db("postgres")
    with open_db(directory.path) as db:
        add(db)
        change(directory, "REVOKE INSERT ON jobs FROM balsam")
        with refused(BackendError, "permission denied for table jobs.*rights"):
            add(db)
        assert db.jobs.count() == 1
        change(directory, "REVOKE SELECT ON schema_version FROM balsam")
        with open_db(directory.path) as other, refused(BackendError, "permission denied for table schema_version"):
            other.jobs.count()


def test_a_plan_that_a_new_connection_heals(make_db):
    directory = make_db("postgres")
    with open_db(directory.path) as db:
        add(db)
        for _ in range(10):  # the driver prepares what it runs often
            assert [job.name for job in db.jobs] == ["x"]
            add(db, "y")
            db.jobs.where(name="y").remove()
        change(directory, "ALTER TABLE jobs ALTER COLUMN name TYPE varchar(3000)")
        assert [job.name for job in db.jobs] == ["x"]
        add(db, "z")


def sh(script, **fields):
    return Job(command=shlex.join(["sh", "-c", script]), **fields)


def start_launcher(directory):
    words = ["--db", str(directory.path), "launcher", "--consume-all", "--max-ranks-per-node", "2"]
    return subprocess.Popen([*BALSAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_launcher(directory, statement, restore, said, *, recorded):
    with open_db(directory.path) as db:
        job = sh("echo $$ > pid.new; mv pid.new pid; sleep 600", name="long")
        short = sh("until test -e go; do sleep 0.02; done", name="short")
        db.jobs.add([job, short, Job(name="waits", command="true")])
        pid_file = db.workdir(job) / "pid"
        with start_launcher(directory) as launcher:
            try:
                wait_until(pid_file.exists)
                wait_until(lambda: [one.state for one in db.jobs][:2] == ["RUNNING", "RUNNING"])
                change(directory, statement)
                (db.workdir(short) / "go").touch()
                _, err = launcher.communicate(timeout=60)
            finally:
                launcher.kill()
        change(directory, restore)
        assert launcher.returncode == BackendError.exit_code, err
        last = err.splitlines()[-1]
        assert last.startswith("Error: ")
        assert said in last
        assert "launcher" in last
        assert "has ended" in last
        assert ("is recorded" in last) is recorded, last
        assert not is_alive(int(pid_file.read_text()))
        states = {one.name: str(one.state) for one in db.jobs}
        assert states == {"long": "RESTART_READY", "short": "JOB_FINISHED", "waits": "READY"} if recorded else {
            "long": "RUNNING", "short": "RUNNING", "waits": "READY",
        }  # fmt: skip
        return last, db.jobs.get(job.id), db.run(GetLaunchers())


def test_a_launcher_ends_with_the_text(each_db):
    """Its claims fail; what it did is recorded, and its job given back."""
    last, job, launchers = check_launcher(each_db, RENAME_COLUMN, RENAME_BACK, "command", recorded=True)
    assert "others may take its jobs now" in last
    assert job.launcher_id is None
    assert launchers == []


def test_a_launcher_behind_the_server_ends_with_the_text(served):
    last, job, launchers = check_launcher(served, RENAME_COLUMN, RENAME_BACK, "command", recorded=True)
    assert "others may take its jobs now" in last
    assert job.launcher_id is None
    assert launchers == []


def test_a_launcher_that_can_not_write_says_what_is_lost(each_db):
    last, job, launchers = check_launcher(
        each_db, RENAME_REQUESTS, RESTORE_REQUESTS, "processed_requests", recorded=False
    )
    assert "the last changes of 2 jobs could not be written" in last
    assert "when its lease is over" in last
    assert job.launcher_id is not None
    assert [one.id for one in launchers] == [job.launcher_id]
