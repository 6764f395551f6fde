"""The test run's own database servers: what the other tests rely on, and that none outlives its test run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from db_servers import KINDS

from balsam_core.testing.tools import wait_until

SUPPORT = Path(__file__).parents[1] / "support"
START = """
import json, sys, time
from balsam_core.testing.run import Guard
from db_servers import Databases
directory = Guard("balsam-test-").directory
server = Databases(directory).server(sys.argv[1])
print(json.dumps([str(directory), server.process.pid]), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_database_is_empty_and_keeps_any_text(database_url, kind):
    url = database_url(kind)
    with _connected(url) as connection:
        assert sa.inspect(connection).get_table_names() == []
        connection.execute(sa.text("CREATE TABLE t (name VARCHAR(40) PRIMARY KEY)"))
        connection.execute(sa.text("INSERT INTO t VALUES ('a'), ('A'), ('🌲')"))
        connection.commit()
    with _connected(url) as connection:
        assert set(connection.scalars(sa.text("SELECT name FROM t"))) == {"a", "A", "🌲"}


def test_database_is_dropped_while_a_reader_is_connected(databases, server_kind):
    with databases.fresh(server_kind) as url:
        forgotten = _connected(url)
        forgotten.execute(sa.text("CREATE TABLE t (i INT)"))
        forgotten.commit()
        forgotten.execute(sa.text("SELECT * FROM t"))
    with pytest.raises(sa.exc.OperationalError):
        _connected(url)
    forgotten.invalidate()
    forgotten.close()


def test_postgres_role_is_no_superuser(database_url):
    with _connected(database_url("postgres")) as connection:
        assert connection.scalar(sa.text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")) is False


def test_mariadb_role_is_no_superuser(database_url):
    with _connected(database_url("mysql")) as connection, pytest.raises(sa.exc.DBAPIError):
        connection.execute(sa.text("SELECT * FROM mysql.global_priv"))


def test_mariadb_compares_bytes_and_reads_committed(database_url):
    with _connected(database_url("mysql")) as connection:
        assert connection.scalar(sa.text("SELECT @@collation_database")) == "utf8mb4_bin"
        assert connection.scalar(sa.text("SELECT @@tx_isolation")) == "READ-COMMITTED"


def test_passwordless_administrator_is_refused(databases, server_kind, database_url):
    url = sa.make_url(database_url(server_kind))
    for name in ("root", "admin", "balsam", "postgres", ""):
        with pytest.raises(sa.exc.OperationalError):
            _connected(url.set(username=name, password=""))


def test_nothing_is_left_of_a_test_run_that_is_killed(other_run):
    run, directory, server = other_run
    started = [server, *server.children(recursive=True)]
    assert {"postgres", "mariadbd"} & {process.name() for process in started}
    run.kill()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
    wait_until(lambda: not directory.exists(), "the removal of the run's directory")


@pytest.fixture(params=["postgres", "mysql"])
def server_kind(request, database_url):
    database_url(request.param)  # skips where there is none
    return request.param


@pytest.fixture
def other_run(server_kind):
    """A process of its own that has a server running; its directory and its server."""
    environ = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    with subprocess.Popen([sys.executable, "-c", START, server_kind], stdout=subprocess.PIPE, env=environ) as run:
        assert run.stdout
        directory, server = json.loads(run.stdout.readline())
        yield run, Path(directory), psutil.Process(server)
        run.kill()
        shutil.rmtree(directory, ignore_errors=True)


def _connected(url):
    return sa.create_engine(url, poolclass=sa.NullPool).connect()
