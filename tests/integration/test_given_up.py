"""Real databases whose server can't work: it is given up, and everybody who uses the DB is told why, at once."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import time

import pytest
from backend_dbs import SERVER_KINDS, make_db
from balsam_program import BALSAM, child, here
from resources import is_alive
from served_db import ServedDB

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.dbdir import address
from balsam_core.dbdir.lease import HeldLease, LeaseObserver, lease_file, new_lease
from balsam_core.errors import BackendError, BalsamError, DBDirError, Unavailable
from balsam_core.system.signals import StopRequests
from balsam_core.testing.tools import wait_until
from balsam_core.watchdog import control, failures
from balsam_core.watchdog.options import ServerOptions
from balsam_core.watchdog.supervisor import Supervisor, SupervisorOutcome
from balsam_core.watchdog.takeover import acquire
from balsam_mysql.init_files import server_home
from balsam_postgres.init_files import data_directory

AT_ONCE = 10.0  # seconds, on a busy machine


@pytest.fixture
def served(tmp_path):
    made = ServedDB(tmp_path / "db")
    made.start()
    assert made.lease
    yield made
    made.close()


def directory_instead(db):
    (db.path / "db.sqlite3").rename(db.path / "away.sqlite3")
    (db.path / "db.sqlite3").mkdir()


def file_again(db):
    (db.path / "db.sqlite3").rmdir()
    (db.path / "away.sqlite3").rename(db.path / "db.sqlite3")


def foreign_database(db):
    other = initialise(db.path.parent / "other", "sqlite").db
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            (db.path / f"db.sqlite3{suffix}").rename(db.path / f"away.sqlite3{suffix}")
    shutil.copy(other.path / "db.sqlite3", db.path / "db.sqlite3")


def own_database(db):
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            (db.path / f"db.sqlite3{suffix}").unlink()
        with contextlib.suppress(FileNotFoundError):
            (db.path / f"away.sqlite3{suffix}").rename(db.path / f"db.sqlite3{suffix}")


def execute(db, statement):
    with contextlib.closing(sqlite3.connect(db.path / "db.sqlite3")) as connection, connection:
        connection.execute(statement)


def lose_table(db):
    execute(db, "ALTER TABLE meta RENAME TO gone")


def restore_table(db):
    execute(db, "ALTER TABLE gone RENAME TO meta")


FAULTS = {
    "directory": (directory_instead, file_again, DBDirError.exit_code, "db.sqlite3"),
    "foreign": (foreign_database, own_database, BackendError.exit_code, "belongs to another DB directory"),
    "table": (lose_table, restore_table, BackendError.exit_code, "no such table: meta"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_can_not_work(served, fault):
    harm, heal, code, said = FAULTS[fault]
    directory = served.dir
    with open_db(served.path) as db:
        long = Job(name="long", command=shlex.join(["sh", "-c", "echo $$ > pid.new; mv pid.new pid; sleep 600"]))
        db.jobs.add(long)
        pid_file = db.workdir(long) / "pid"
        words = ["--db", str(served.path), "launcher", "--consume-all"]
        with subprocess.Popen([*BALSAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
            try:
                wait_until(pid_file.exists)
                harm(directory)
                served.kill_server()
                with pytest.raises(BalsamError):  # it may be told while the server is tried again
                    db.jobs.add(Job(name="waits", command="true"))
                wait_until(lambda: control.describe(directory).state == "failed")
                began = time.monotonic()
                with pytest.raises(BalsamError, match=f"was given up: .*{said}") as caught:
                    db.jobs.count()
                assert time.monotonic() - began < AT_ONCE
                assert caught.value.exit_code == code
                _, err = launcher.communicate(timeout=60)
            finally:
                launcher.kill()
    assert launcher.returncode == code, err
    assert said in err.splitlines()[-1]
    assert not is_alive(int(pid_file.read_text()))
    assert said in here.refused("ls", db=served.path, code=code), "not past the server"
    assert said in here.refused("job", "--name", "x", "--command", "true", db=served.path, code=code)
    status = child("status", db=served.path)
    assert (status.code, said in status.out) == (code, True)
    assert said in child("dbserver", db=served.path).error
    assert said in here.refused("ls", db=served.path), "nor after another start"
    heal(directory)
    served.start()
    with open_db(served.path) as db:
        assert db.jobs.get(long.id).name == "long"
    served.stop()
    here.good("ls", db=served.path)


@pytest.fixture(params=SERVER_KINDS)
def own_server(request, tmp_path):
    with make_db(request.param, tmp_path / "db") as made:
        yield made


def spoil_configuration(db):
    """Let the server refuse its own files."""
    if db.db_type == "postgres":
        with (data_directory(db) / "postgresql.auto.conf").open("a") as file:
            file.write("no_such_parameter = 1\n")
    else:
        (server_home(db) / "data" / "ibdata1").write_bytes(b"")


def test_a_database_server_that_refuses_its_files(own_server, monkeypatch):
    monkeypatch.setattr(failures, "REPEATED_SECONDS", 1.0)
    db = own_server.dir
    with StopRequests() as stops:
        held = acquire(db, new_lease(listen="127.0.0.1"), LeaseObserver(db))
        loop = Supervisor(db, registry.load(db.db_type), held, ServerOptions(), stops, lambda _: None)

        def until(condition):
            def turn():
                loop.run_once()
                return condition()

            wait_until(turn, seconds=120)

        try:
            until(lambda: address.read(db) is not None)
            client = open_db(db.path)
            assert client.jobs.count() == 0
            spoil_configuration(db)
            loop.server.kill()
            until(lambda: loop.outcome is not None)
        finally:
            if loop.server is not None:
                loop.server.kill()
                wait_until(loop.server.ended)
    assert loop.outcome is SupervisorOutcome.GIVEN_UP
    assert not lease_file(db).exists()
    began = time.monotonic()
    with pytest.raises(BackendError, match="was given up: it failed 5 times in the same way"):
        client.jobs.count()
    assert time.monotonic() - began < AT_ONCE
    client.close()
    assert "was given up" in here.refused("ls", db=db.path, code=BackendError.exit_code)


def test_who_waits_is_told_what_the_server_died_of(served, caplog):
    """The watchdog is frozen, as if it started the server again without end."""
    watchdog = served.watchdog
    held = HeldLease(served.dir, served.lease)
    with open_db(served.path) as db:
        os.kill(watchdog, signal.SIGSTOP)
        try:
            served.kill_server()
            wait_until(lambda: address.is_gone(served.address))
            assert held.update(restarts=4, failure="ended with exit code 6 after 0.1 s: no luck")
            said = "started again 4 times; last: it ended with exit code 6 after 0.1 s: no luck"
            with pytest.raises(Unavailable, match=f"is not there; it was {said}"):
                db.jobs.count()
        finally:
            os.kill(watchdog, signal.SIGCONT)
        assert f"waiting for the server of {served.path}; it was {said}" in caplog.text
        wait_until(lambda: db.jobs.count() == 0)


@pytest.mark.parametrize("kind", SERVER_KINDS)
def test_who_waits_for_a_database_server_is_told(kind, tmp_path, caplog):
    with make_db(kind, tmp_path / "db") as own:
        own.start()
        watchdog = own.watchdog
        held = HeldLease(own.dir, own.lease)
        with open_db(own.path) as db:
            assert db.jobs.count() == 0
            os.kill(watchdog, signal.SIGSTOP)
            try:
                own.kill_server()
                assert held.update(restarts=4, failure="ended with exit code 1 after 0.1 s: no luck")
                said = "started again 4 times; last: it ended with exit code 1 after 0.1 s: no luck"
                with pytest.raises(Unavailable, match=f"is not there; it was {said}"):
                    db.jobs.count()
            finally:
                os.kill(watchdog, signal.SIGCONT)
            assert f"waiting for the server of {own.path}; it was {said}" in caplog.text
