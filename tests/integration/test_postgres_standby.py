"""A PostgreSQL primary with a synchronous standby: a write counts as done once the standby has it, whatever goes wrong.

The standby is kept from answering by stopping the process that receives from the primary, so COMMIT waits.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import plugin_dbs
import pytest
from balsam_program import BALSAM, here
from db_servers import Missing, PostgresServer, skip_kind

from balsam_core import Job, open_db
from balsam_core.dbdir.directory import write_config
from balsam_core.errors import OutcomeUnknown, Unavailable
from balsam_core.model.calls import AddJobs
from balsam_core.testing.tools import wait_until

pytest.importorskip("balsam_postgres")

SECONDS = 60.0
DATABASE = "replicated"


class Primary(PostgresServer):
    """A server whose COMMIT waits for a standby, once :meth:`wait_for_standby` was called."""

    def argv(self):
        return [*super().argv(), "-c", "synchronous_commit=on"]

    def wait_for_standby(self):
        self.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        wait_until(lambda: self.ask("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == 1)

    def ask(self, question, database=None):
        with contextlib.closing(self.connect(database)) as connection:
            row = connection.execute(question).fetchone()
        return row[0] if row else None

    def waiting_backend(self):
        """The process whose COMMIT waits, None where there is none, or the server starts."""
        try:
            return self.ask("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'balsam'")
        except self.not_ready:
            return None


class Standby(Primary):
    """A copy of a primary that goes on receiving from it."""

    def __init__(self, parent, primary):
        self._primary = primary
        super().__init__(parent)

    def find(self):
        super().find()
        if not (self.bindir / "pg_basebackup").exists():
            raise Missing(f"{self.bindir} has no pg_basebackup")
        self.password = self._primary.password

    def prepare(self):
        source = f"host=127.0.0.1 port={self._primary.port} user=admin password={self.password}"
        copy = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
        return [[str(self.bindir / "pg_basebackup"), f"--dbname={source}", "-D", str(self.directory / "data"), *copy]]

    def introduce_role(self):
        self.execute("SELECT 1")

    @contextlib.contextmanager
    def lagging(self):
        """Inside the block it receives nothing."""
        receiver = wait_until(lambda: self.ask("SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'"))
        os.kill(receiver, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(receiver, signal.SIGCONT)


@pytest.fixture(scope="module")
def primary(run_directory):
    try:
        server = Primary(run_directory)
    except Missing as missing:
        skip_kind("postgres", missing)
    yield server
    server.close()


@pytest.fixture(scope="module")
def standby(primary, run_directory):
    primary.create_database(DATABASE)
    try:
        server = Standby(run_directory, primary)
    except Missing as missing:
        skip_kind("postgres", missing)
    primary.wait_for_standby()
    yield server
    server.close()


@pytest.fixture(scope="module")
def dbdir(primary, standby, tmp_path_factory):
    return plugin_dbs.make_db(tmp_path_factory.mktemp("replicated") / "db", "postgres", primary.url(DATABASE))


def _terminate(primary, pid):
    primary.execute(f"SELECT pg_terminate_backend({pid})")


def _cancel(primary, pid):
    primary.execute(f"SELECT pg_cancel_backend({pid})")


def _crash(primary, pid):
    os.kill(pid, signal.SIGKILL)  # the server ends all others, and starts again


@pytest.mark.parametrize("fault", [_terminate, _cancel, _crash])
def test_a_write_is_answered_when_the_standby_has_it(primary, standby, dbdir, fault):
    call = AddJobs(jobs=[Job(command="true", name=fault.__name__)])
    with open_db(dbdir.path) as db, ThreadPoolExecutor(1) as thread:
        before = db.jobs.count()
        with standby.lagging():
            answer = thread.submit(db.run, call, timeout=SECONDS)
            first = wait_until(primary.waiting_backend)
            fault(primary, first)
            # Committed here, and not there: the repetition must wait, too, however it ends.
            second = wait_until(lambda: answer.done() or primary.waiting_backend() not in {None, first})
            assert not answer.done(), answer.exception() or answer.result()
            assert second
            assert standby.ask("SELECT count(*) FROM jobs", DATABASE) == before
        added = answer.result(SECONDS).first_id
    wait_until(lambda: standby.ask(f"SELECT count(*) FROM jobs WHERE id = {added}", DATABASE) == 1)
    assert standby.ask("SELECT count(*) FROM jobs", DATABASE) == before + 1


@pytest.mark.parametrize("fault", [_terminate, _cancel])
def test_without_the_standby_nobody_is_told_that_it_is_done(primary, standby, dbdir, fault):
    with open_db(dbdir.path) as db, ThreadPoolExecutor(1) as thread, standby.lagging():
        answer = thread.submit(db.run, AddJobs(jobs=[Job(command="true")]), timeout=4.0)
        fault(primary, wait_until(primary.waiting_backend))
        with pytest.raises(OutcomeUnknown, match="may or may not have been applied"):
            answer.result(SECONDS)


# ---- what is told of the replication


def _warnings(dbdir):
    lines = here.good("status", "-o", "json", db=dbdir.path).json["warnings"]
    return [line for line in lines if "fsync" not in line and "full_page_writes" not in line]


def test_replication_that_can_lose_writes_is_warned_about(primary, standby, dbdir):
    env = {"BALSAM_DB_PASSWORD": primary.password}
    assert _warnings(dbdir) == []
    try:
        for value, risk in (("local", "no write waits for a standby"), ("remote_write", "forced a write to its disk")):
            primary.execute(f"ALTER ROLE balsam SET synchronous_commit = {value}")
            (line,) = _warnings(dbdir)
            assert f"synchronous_commit={value}: " in line
            assert risk in line
            assert f"Warning: {line}\n" in here.good("init", dbdir.path, env=env).err
    finally:
        primary.execute("ALTER ROLE balsam RESET synchronous_commit")
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
    try:
        (line,) = _warnings(dbdir)
        assert "is replicated, but synchronous_standby_names is empty: a failover may undo writes" in line
        assert f"Warning: {line}\n" in here.good("init", dbdir.path, env=env).err
        assert f"warning    {line}\n" in here.good("status", db=dbdir.path).out
    finally:
        primary.wait_for_standby()
    assert _warnings(dbdir) == []


# ---- which of the servers is used


def _url(*servers, options=""):
    return f"postgresql://balsam@{','.join(f'127.0.0.1:{one.port}' for one in servers)}/{DATABASE}{options}"


@pytest.fixture
def with_url(dbdir, primary, tmp_path):
    """Give the same DB under another URL, which ``init`` would refuse."""

    def copied(url):
        settings = {**dbdir.settings, "url": url}
        path = shutil.copytree(dbdir.path, tmp_path / "copy")
        write_config(replace(dbdir, path=path, settings=settings))
        return path

    return copied


def test_reads_and_writes_go_to_the_primary_wherever_it_stands_in_the_url(primary, standby, dbdir):
    env = {"BALSAM_DB_PASSWORD": primary.password}
    here.good("init", dbdir.path, "--url", _url(standby, primary), env=env)
    here.good("run", "--name", "second-host", "--", "true", db=dbdir.path)
    with standby.lagging():
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
        try:
            here.good("run", "--name", "not-on-the-standby", "--", "true", db=dbdir.path)
            assert "not-on-the-standby" in here.good("ls", db=dbdir.path).out
        finally:
            primary.wait_for_standby()


def test_a_standby_alone_is_called_one(primary, standby, tmp_path):
    env = {"BALSAM_DB_PASSWORD": primary.password}
    words = ["init", tmp_path / "db", "--db-type", "postgres", "--url", _url(standby)]
    assert "is a standby" in here.refused(*words, code=6, env=env)
    assert not (tmp_path / "db").exists()
    for attributes in ("any", "prefer-standby", "standby", "read-only"):
        words[-1] = _url(standby, options=f"?target_session_attrs={attributes}")
        assert "permits a standby" in here.refused(*words, code=5, env=env)


@pytest.mark.parametrize("options", ["", "?target_session_attrs=any"])
def test_a_call_that_finds_only_a_standby_says_so_soon_and_in_the_end(standby, with_url, options, caplog):
    path = with_url(_url(standby, options=options))
    with open_db(path) as db, ThreadPoolExecutor(1) as thread:
        answer = thread.submit(db.run, AddJobs(jobs=[Job(command="true")]), timeout=6.5)
        wait_until(lambda: "Waiting for the database" in caplog.text)
        assert not answer.done()
        with pytest.raises(Unavailable, match=r"is a standby|allows no writing"):
            answer.result(SECONDS)
    (line,) = caplog.messages
    assert "standby" in line


def test_a_call_that_finds_only_a_standby_waits_for_its_promotion(primary, standby, dbdir, tmp_path, run_directory):
    server = Standby(run_directory, primary)  # its own, since it becomes a primary
    try:
        path = shutil.copytree(dbdir.path, tmp_path / "copy")
        write_config(replace(dbdir, path=path, settings={**dbdir.settings, "url": _url(server)}))
        words = [*BALSAM, "--db", str(path), "-o", "ids", "run", "--name", "later", "--", "true"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
            told = program.stderr.readline()
            assert told.startswith("Waiting for the database, for 1"), told
            assert "the server is a standby" in told
            server.execute("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
            server.execute("SELECT pg_promote()")
            (added,) = program.communicate(timeout=SECONDS)[0].split()
        assert program.returncode == 0
        assert here.good("-o", "ids", "ls", "--name", "later", db=path).ids == [int(added)]
    finally:
        server.close()
