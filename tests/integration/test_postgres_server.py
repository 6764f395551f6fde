"""A DB on a PostgreSQL server of its own: made, served, killed, stopped, and closed to everybody else.

All tests use one DB, whose path is as nasty as a path can be.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import plugin_dbs
import pytest
from balsam_program import here
from exact import check, rows_by_api, writers
from served_db import ServedDB

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.dbdir import address
from balsam_core.errors import BackendError, Busy, Corrupt, DBDirError
from balsam_core.system import processes
from balsam_core.testing.tools import wait_until

psycopg = pytest.importorskip("psycopg")
programs = pytest.importorskip("balsam_postgres.programs")
try:
    programs.find_server()
except BackendError as lacking:
    pytest.skip(str(lacking), allow_module_level=True)

NASTY = "a db 'with' \"quotes\", \\b #hash; $(x) ü\N{SNOWMAN} %s\nnew=line "


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("postgres") / NASTY / ("long" * 40)
    db = ServedDB(path, db_type="postgres")
    try:
        db.start()
        yield db
    finally:
        db.close()


@pytest.fixture
def backend():
    return registry.load("postgres")


@pytest.fixture
def login(served):
    """A function that opens a driver's connection, as the role with its password unless told otherwise."""
    with contextlib.ExitStack() as stack:

        def connect(**changes):
            settings = {
                "host": served.address.host,
                "port": served.address.port,
                "user": "balsam",
                "dbname": "balsam",
                "password": password_of(served),
                "connect_timeout": 10,
                "sslmode": "require",
            }
            connection = psycopg.connect(**{**settings, **changes})
            stack.callback(connection.close)
            return connection

        yield connect


@pytest.fixture
def engine(served, backend):
    engine = backend.create_engine(served.dir, "writer")
    yield engine
    engine.dispose()


def password_of(served):
    return (served.path / "keys" / "postgres_password").read_text().strip()


# ------------------------------------------------------------------------------------------------------------ everyday


def test_everything_works_as_on_other_databases(served):
    with open_db(served.path) as db:
        parent = Job(command="true", workflow="everyday", name="Straße \N{SNOWMAN} \U0001f600")
        db.jobs.add([parent, Job(command="true", workflow="everyday", name="strasse", parents=[parent])])
        found = db.jobs.where(workflow="everyday")
        assert sorted(job.name for job in found) == ["Straße \N{SNOWMAN} \U0001f600", "strasse"]
        assert found.kill() == 2
    assert "everyday" in here("ls", "--wf", "everyday", db=served.path).out


def test_names_are_compared_byte_by_byte(served):
    with open_db(served.path) as db:
        db.jobs.add([Job(command="true", workflow="bytes", key=key) for key in ("key", "KEY", "key ")])
        assert db.jobs.where(workflow="bytes").count() == 3


def test_init_again_keeps_everything_and_can_change_the_durability(served, backend):
    before = password_of(served)
    for durability, expected in (("relaxed", "off"), ("full", "on")):
        db = initialise(served.path, options={"durability": durability}).db
        with backend.open_transport(db) as transport, transport.engine.connect() as conn:
            assert conn.exec_driver_sql("SHOW synchronous_commit").scalar() == expected
    assert password_of(served) == before
    with pytest.raises(Exception, match="must be full or relaxed"):
        initialise(served.path, options={"durability": "none"})
    with pytest.raises(Exception, match="a server of its own and one that somebody else runs"):
        initialise(served.path, options={"url": "postgresql://user@host/db"})


def test_a_read_sees_one_state_whatever_others_commit(engine):
    query = "SELECT count(*) FROM workflows"
    with engine.connect() as plain, engine.connect() as writes:
        reads = plain.execution_options(balsam_reads=True)
        before = reads.exec_driver_sql(query).scalar()
        writes.exec_driver_sql("INSERT INTO workflows (id, name) VALUES (9000, 'meanwhile')")
        writes.commit()
        assert reads.exec_driver_sql(query).scalar() == before
        with pytest.raises(Exception, match="read-only transaction"):
            reads.exec_driver_sql("DELETE FROM workflows")
        reads.rollback()
        assert reads.exec_driver_sql(query).scalar() == before + 1
        writes.exec_driver_sql("DELETE FROM workflows WHERE id = 9000")
        writes.commit()
    mode = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    with engine.connect() as again:  # the same connections, now for the other kind
        assert again.exec_driver_sql(mode).one() == ("read committed", "off")


def test_a_lock_that_is_held_too_long_is_an_error_that_is_repeated(served, backend, login):
    from balsam_core.model.calls import AddJobs

    with open_db(served.path) as db:
        db.jobs.add(Job(command="true"))  # so that there is something to be locked
    holder = login()
    holder.execute("SELECT * FROM counters FOR UPDATE")
    with backend.open_transport(served.dir) as transport:
        with transport.engine.connect() as conn:  # so that the test need not wait for the usual 10 s
            conn.exec_driver_sql("SET lock_timeout = 200")
            conn.commit()
        call = AddJobs(jobs=[Job(command="true", workflow="locked")])
        with pytest.raises(Busy, match="lock timeout"):
            transport.run(call, timeout=0.5)
        holder.rollback()
        assert transport.run(call, timeout=30).first_id > 0
    with open_db(served.path) as db:
        assert db.jobs.where(workflow="locked").count() == 1


def test_a_connection_that_the_server_ends_is_known_for_broken(served, backend, login):
    from balsam_core.model.calls import AddJobs

    with backend.open_transport(served.dir) as transport:
        for state in ("idle", "in a transaction"):
            with transport.engine.connect() as conn:
                number = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar()
                if state == "idle":
                    conn.rollback()
                login().execute("SELECT pg_terminate_backend(%s)", [number])
                with pytest.raises(Exception, match=r"terminating connection|closed the connection") as caught:
                    wait_until(partial(_fails, conn))
                assert caught.value.connection_invalidated
        assert transport.run(AddJobs(jobs=[Job(command="true", workflow="ended")])).first_id > 0


def _fails(conn):
    return conn.exec_driver_sql("SELECT 1").scalar() != 1


def test_libpqs_variables_lead_nobody_astray(served, tmp_path):
    misleading = {"PGHOST": "192.0.2.1", "PGHOSTADDR": "192.0.2.1", "PGPORT": "1", "PGUSER": "x", "PGDATABASE": "x"}
    misleading |= {"PGPASSWORD": "x", "PGSSLMODE": "require", "PGOPTIONS": "-c search_path=x", "PGCLIENTENCODING": "x"}
    misleading |= {"PGDATESTYLE": "German", "PGTZ": "Asia/Tokyo", "PGTARGETSESSIONATTRS": "standby"}
    wrong = {"PGSERVICE": "nowhere", "PGDATESTYLE": "x", "PGTZ": "x", "PGGEQO": "maybe", "PGPORT": "", "PGSSLMODE": "x"}
    wrong |= {"PGSSLMINPROTOCOLVERSION": "x", "PGCONNECT_TIMEOUT": "x", "PGGSSENCMODE": "x", "PGCHANNELBINDING": "x"}
    wrong |= {"LC_ALL": "nowhere", "LC_MESSAGES": "de_DE.UTF-8", "LANGUAGE": "de"}
    before = here("ls", "--history", db=served.path).out
    assert here("ls", "--history", db=served.path, env=misleading).out == before
    assert here("ls", "--history", db=served.path, env=wrong).out == before
    assert here.good("backup", tmp_path / "saved", db=served.path, env=wrong)
    db = ServedDB(tmp_path / "db", wrong, db_type="postgres")
    try:
        db.start()
        assert here("ls", db=db.path, env=wrong).code == 0
    finally:
        db.close()


def test_no_variable_of_libpq_counts(served, theirs_too):
    options = [option for option in psycopg.pq.Conninfo.get_defaults() if option.envvar]
    everything = {option.envvar.decode(): "x" for option in options}
    assert len(everything) > 20
    for path in (served.path, theirs_too):
        assert here("ls", db=path, env=everything).code == 0
        for name in everything:
            assert here("ls", db=path, env={name: "x"}).code == 0, name


@pytest.fixture
def theirs_too(databases, tmp_path):
    with databases.fresh("postgres") as url:
        yield plugin_dbs.make_db(tmp_path / "theirs", "postgres", url).path


def test_programs_of_other_threads_keep_libpqs_variables(served):
    stop = threading.Event()
    seen = set()

    def look():
        while not stop.is_set():
            seen.add(subprocess.run(["printenv", "PGHOST"], capture_output=True, text=True, check=False).stdout)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as thread:
        patch.setenv("PGHOST", "db.example")
        looking = thread.submit(look)
        for _ in range(30):
            with open_db(served.path) as db:
                assert db.jobs.count() >= 0
        stop.set()
        looking.result()
    assert seen == {"db.example\n"}


def test_others_keep_libpqs_variables(served):
    with open_db(served.path) as db, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGGEQO", "maybe")
        assert db.jobs.count() >= 0
        assert subprocess.run(["printenv", "PGGEQO"], capture_output=True, text=True, check=True).stdout == "maybe\n"


# ---------------------------------------------------------------------------------------------------------------- bulk


def test_bulk_insert_takes_any_value_and_refuses_like_an_insert(engine, backend):
    from sqlalchemy.exc import IntegrityError

    columns = ("id", "text", "flag", "bytes", "number", "at", "json")
    rows = [
        (1, "tab\t newline\n backslash \\N \\. ü\N{SNOWMAN}", True, b"\x00\xff", 1.5, None, '{"a": [1, "\\n"]}'),
        (2, None, None, None, None, None, None),
        (3, "", False, b"", -1e300, "2026-01-02 03:04:05.678901+00", "[]"),
    ]
    with engine.connect() as conn, conn.begin():
        conn.exec_driver_sql(
            "CREATE TEMPORARY TABLE many (id integer PRIMARY KEY, text text, flag boolean, bytes bytea, "
            "number double precision, at timestamptz, json jsonb) ON COMMIT DROP"
        )
        backend.bulk_insert(conn, "many", columns, rows)
        found = conn.exec_driver_sql("SELECT * FROM many ORDER BY id").all()
        assert found[0][:5] == rows[0][:5]
        assert found[0][6] == {"a": [1, "\n"]}
        assert found[1] == rows[1]
        assert found[2][5].microsecond == 678901
        with pytest.raises(IntegrityError) as caught, conn.begin_nested():
            backend.bulk_insert(conn, "many", ("id",), [(4,), (1,)])
        assert not caught.value.connection_invalidated
        assert conn.exec_driver_sql("SELECT count(*) FROM many").scalar() == 3


def test_many_jobs_arrive_whole(served):
    with open_db(served.path) as db:
        db.jobs.add(Job(command=f"echo {i}", workflow="many", key=f"many {i}") for i in range(3000))
        assert db.jobs.where(workflow="many").count() == 3000


# ------------------------------------------------------------------------------------------------------------ security


@pytest.mark.parametrize(
    "changes",
    [
        {"password": "wrong"},
        {"password": ""},
        {"dbname": "template1"},
        {"user": "balsam_admin", "dbname": "balsam"},
        {"user": "postgres"},
        {"user": "root"},
    ],
)
def test_nobody_else_gets_in(login, changes):
    with pytest.raises(psycopg.OperationalError, match=r"authentication failed|no password|no pg_hba.conf entry"):
        login(**changes)


def test_the_role_owns_its_database_and_nothing_else(login, served):
    connection = login()
    rights = "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles"
    assert connection.execute(f"{rights} WHERE rolname = 'balsam'").fetchall() == [(False,) * 5]
    for statement in ("CREATE ROLE other", "COPY (SELECT 1) TO PROGRAM 'true'", "SELECT pg_read_file('PG_VERSION')"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)
        connection.rollback()
    hba = (served.path / "postgres" / "pg_hba.conf").read_text()
    lines = [line.split() for line in hba.splitlines() if not line.startswith("#")]
    assert [(line[0], line[-1]) for line in lines] == [("host", "scram-sha-256")] * 2
    shown = connection.execute(
        "SELECT current_setting('listen_addresses'), current_setting('fsync'), current_setting('full_page_writes'), "
        "current_setting('data_checksums')"
    ).fetchone()
    assert shown == ("127.0.0.1", "on", "on", "on")


def test_no_secret_is_shown_and_nothing_is_open_to_others(served):
    secret = password_of(served).encode()
    for file in served.path.rglob("*"):
        if "pg_wal" in file.parts or "base" in file.parts:
            continue
        mode = stat.S_IMODE(file.lstat().st_mode)
        assert not mode & 0o077, file
        if file.is_file() and file.parent.name != "keys":
            assert secret not in file.read_bytes(), file
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            assert secret not in (process / "cmdline").read_bytes()
    assert b"SCRAM-SHA-256$" not in b"".join(file.read_bytes() for file in served.dir.log.iterdir())


def test_a_password_that_others_can_read_is_refused(served, backend):
    file = served.path / "keys" / "postgres_password"
    file.chmod(0o644)
    try:
        with pytest.raises(DBDirError, match="is open to other users"), open_db(served.path) as db:
            db.jobs.where().count()
    finally:
        file.chmod(0o600)


# -------------------------------------------------------------------------------------------------- killed and copied


def test_killed_under_writers_nothing_is_lost_or_doubled(served, tmp_path):
    with writers(served.path, 4, tmp_path) as clients:
        clients.begin()
        for _ in range(2):
            clients.wait_for_more(30)
            served.wait_for_another(served.kill_server())
        clients.wait_for_more(30)
        clients.stop()
        clients.finish()
        journals = clients.journals
    report = check(journals, rows_by_api(served.path))
    report.assert_exact()
    assert not report.errors, report.errors
    assert report.longest_stall < 10


def test_a_backup_makes_the_same_db_again(served, tmp_path):
    # While others write.
    stop = threading.Event()

    def write():
        with open_db(served.path) as db:
            while not stop.is_set():
                db.jobs.add([Job(command="true", workflow="beside"), Job(command="true", workflow="beside")])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        here.good("backup", tmp_path / "saved", db=served.path)
    finally:
        stop.set()
        thread.join()
    assert stat.S_IMODE((tmp_path / "saved").stat().st_mode) == 0o600
    done = here("restore", tmp_path / "saved", tmp_path / "restored")
    assert done.code == 0, done.err
    restored = ServedDB(tmp_path / "restored", db_type="postgres")
    try:
        restored.start()
        with open_db(restored.path) as db, open_db(served.path) as old:
            assert db.jobs.where(workflow="many").count() == old.jobs.where(workflow="many").count()
            assert db.jobs.where(workflow="beside").count() % 2 == 0
            assert db.jobs.add(Job(command="true", workflow="later"))
    finally:
        restored.close()


def test_a_damaged_backup_is_refused(served, backend, tmp_path):
    for content in (b"", b"PGDMP" + bytes(100), b"PGDMP\x01\x0e\x00\x04\x08\x01" + bytes(20), b"SQLite format 3"):
        (tmp_path / "saved").write_bytes(content)
        with pytest.raises(Corrupt):
            backend.restore(served.dir, served.address, tmp_path / "saved")


# ----------------------------------------------------------------------------------- stopped: these come last, in order


def test_without_its_server_each_command_says_how_to_start_it(served):
    served.stop()
    done = here("ls", db=served.path)
    assert (done.code, done.err.count("\n")) == (6, 1)
    assert "is not running: start it with balsam dbserver --path=" in done.err


def test_a_lock_file_that_names_a_stranger_hinders_no_start_and_the_stranger_lives(served):
    """The lock file of PostgreSQL names a foreign process: it is never signalled, and the start works (T10)."""
    lock = served.path / "postgres" / "postmaster.pid"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        lock.write_text(f"{stranger.pid}\n{lock.parent}\n1\n1\n\n127.0.0.1\n  1  1\nready   \n")
        served.start()
        served.stop()
        assert stranger.poll() is None
        stranger.communicate(b"\n")
    assert not lock.exists()


def test_a_server_that_runs_on_the_data_is_never_joined_by_another(served, backend):
    plan = backend.start_server(served.dir, "127.0.0.1", served_port(), tls=True)
    with subprocess.Popen(plan.argv, cwd=plan.cwd, stderr=subprocess.DEVNULL) as first:
        try:
            wait_until(lambda: plan.is_ready(2))
            again = backend.start_server(served.dir, "127.0.0.1", served_port(), tls=True)
            done = subprocess.run(again.argv, cwd=again.cwd, capture_output=True, check=False, timeout=60)
            assert b'lock file "postmaster.pid" already exists' in done.stderr
            assert not again.is_ready(2)
            assert plan.is_ready(2)
        finally:
            first.send_signal(signal.SIGINT)


def served_port():
    from balsam_core.system.network import choose_port

    return choose_port("127.0.0.1")


def test_data_of_another_major_version_is_left_alone(served):
    version = served.path / "postgres" / "PG_VERSION"
    before = version.read_text()
    version.write_text("99\n")
    try:
        done = served.command()
        assert done.code == BackendError.exit_code, done
        assert "made by PostgreSQL 99" in done.error
        assert "BALSAM_PG_BINDIR" in done.error
        version.unlink()
        done = served.command()
        assert (done.code, done.err.count("\n")) == (8, 1), done
    finally:
        version.write_text(before)
    served.start()
    served.stop()


def test_a_wrong_bindir_is_named(served, tmp_path):
    done = served.command(env={"BALSAM_PG_BINDIR": str(tmp_path)})
    assert done.code == BackendError.exit_code, done
    assert f"{tmp_path}, named by BALSAM_PG_BINDIR, has no program initdb" in done.error


def test_the_server_ends_with_its_watchdog(served):
    served.start()
    published, lease = served.address, served.lease
    began = time.monotonic()
    os.kill(lease.pid, signal.SIGKILL)
    wait_until(lambda: not processes.is_alive(published.pid, published.start_time), "the server's end", seconds=10)
    assert time.monotonic() - began < 10
    served.start()
    served.stop()
    assert address.read(served.dir) is None
