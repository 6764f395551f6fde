"""A DB on a PostgreSQL server behind PgBouncer, in both of its modes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from balsam_program import here
from db_servers import NOBODY, Missing, skip_kind
from sqlalchemy import make_url

from balsam_core import Job, open_db
from balsam_core.backends import registry
from balsam_core.dbdir.directory import DBDir
from balsam_core.system.network import choose_port
from balsam_core.testing.tools import wait_until

pytest.importorskip("balsam_postgres")
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="no PgBouncer (apt-get install pgbouncer)")

CONFIG = """
[databases]
{database} = host=127.0.0.1 port={server_port} user=balsam password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 6
logfile = {folder}/log
pidfile = {folder}/pid
{ignored}
"""


@pytest.fixture(scope="module")
def server(databases):
    try:
        return databases.server("postgres")
    except Missing as missing:
        skip_kind("postgres", missing)


@contextlib.contextmanager
def pooler(run_directory, url, mode, ignored="ignore_startup_parameters = options"):
    """Give the URL of the same database behind a pooler."""
    known, port = make_url(url), choose_port("127.0.0.1")
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=run_directory))
    words = {"database": known.database, "server_port": known.port, "password": known.password, "mode": mode}
    config = folder / "pgbouncer.ini"
    config.write_text(CONFIG.format(**words, port=port, folder=folder, ignored=ignored))
    prefix = []
    if os.geteuid() == 0:  # it refuses to run as root
        run_directory.chmod(0o711)
        for path in (folder, config):
            os.chown(path, NOBODY, NOBODY)
        prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with subprocess.Popen([*prefix, PGBOUNCER, "-q", config], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _listens(port))
            yield f"postgresql://balsam@127.0.0.1:{port}/{known.database}"
        finally:
            process.kill()


def _listens(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _init(path, url):
    return here("init", path, "--db-type", "postgres", "--url", url, env={"BALSAM_DB_PASSWORD": "any"})


@pytest.fixture(params=["transaction", "session"])
def adopted(request, server, databases, run_directory, tmp_path):
    with databases.fresh("postgres") as url, pooler(run_directory, url, request.param) as pooled:
        done = _init(tmp_path / "db", pooled)
        assert done.code == 0, done.err
        assert "a connection pooler in between ignores what Balsam sets" in done.err
        yield request.param, tmp_path / "db"


def test_many_clients_share_the_servers_connections_without_faults(adopted):
    _, path = adopted

    def work(number):
        with open_db(path) as db:
            for turn in range(15):
                db.jobs.add([Job(command="true", workflow=f"w{number}", name=f"{turn}") for _ in range(3)])
                assert db.jobs.where(workflow=f"w{number}").count() == 3 * turn + 3

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(work, range(5)))
    with open_db(path) as db:
        assert db.jobs.count() == 225


@pytest.mark.parametrize("reads", [False, True])
def test_each_transaction_has_the_time_limits(adopted, reads):
    _, path = adopted
    engine = registry.load("postgres").create_engine(DBDir.open(path), "writer")
    question = "SELECT " + ", ".join(
        f"current_setting('{name}')"
        for name in ("lock_timeout", "idle_in_transaction_session_timeout", "client_min_messages", "TimeZone")
    )
    for _ in range(2):
        with engine.connect().execution_options(balsam_reads=reads) as connection, connection.begin():
            assert tuple(connection.exec_driver_sql(question).one()) == ("10s", "1min", "warning", "UTC")
    engine.dispose()


def test_a_backup_needs_a_session_of_its_own(adopted, tmp_path):
    mode, path = adopted
    if mode == "session":
        here.good("backup", tmp_path / "saved", db=path)
    else:
        assert "name the server itself" in here.refused("backup", tmp_path / "saved", code=6, db=path)
        assert not (tmp_path / "saved").exists()


def test_a_pooler_that_refuses_or_ignores_what_the_user_wants_is_not_used(server, databases, run_directory, tmp_path):
    with databases.fresh("postgres") as url:
        with pooler(run_directory, url, "transaction", ignored="") as pooled:
            done = _init(tmp_path / "db", pooled)
            assert done.code == 6
            assert "a pooler in between refuses what Balsam sets: connect to the server itself" in done.err
        with pooler(run_directory, url, "session") as pooled:
            done = _init(tmp_path / "db", f"{pooled}?options=-c%20search_path%3Dmine")
            assert done.code == 6
            assert "is a connection pooler that ignores the URL's options: name the server itself" in done.err
    assert not (tmp_path / "db").exists()
