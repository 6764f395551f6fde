"""Several MariaDB servers in one URL: a Galera cluster of two nodes, and a server that takes no writes.

The second node joins without getting the first one's data, and so never becomes ready; when it dies, the first one has
lost its quorum.
"""

from __future__ import annotations

import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from balsam_program import here
from db_servers import MariaDBServer, Missing, skip_kind

from balsam_core import Job, open_db
from balsam_core.errors import Unavailable
from balsam_core.model.calls import AddJobs
from balsam_core.system.network import choose_port
from balsam_core.testing.tools import wait_until

pytest.importorskip("balsam_mysql")

SECONDS = 60.0
DATABASE = "test_cluster"
PROVIDERS = ("/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so", "/usr/lib/libgalera_smm.so")


class Node(MariaDBServer):
    """A node of a cluster. The first one begins it."""

    def __init__(self, parent: Path, first: Node | None = None) -> None:
        self._first = first
        self.group_port = choose_port("127.0.0.1")
        super().__init__(parent)

    def find(self):
        super().find()
        found = [name for name in PROVIDERS if Path(name).exists()]
        if not found:
            raise Missing("no Galera (apt-get install galera-4)")
        self._provider = found[0]
        if self._first:
            self.password = self._first.password

    def prepare(self):
        commands = super().prepare()
        with (self.directory / "init.sql").open("a") as file:
            file.write(f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;\n")
        return commands

    def argv(self):
        at = f"127.0.0.1:{self.group_port}"
        provider = {"base_host": "127.0.0.1", "base_port": self.group_port, "gmcast.listen_addr": f"tcp://{at}"}
        options = {
            "wsrep-on": "ON",
            "wsrep-provider": self._provider,
            "wsrep-cluster-name": "balsam",
            "wsrep-cluster-address": f"gcomm://127.0.0.1:{self._first.group_port}" if self._first else "gcomm://",
            "wsrep-node-address": at,
            "wsrep-sst-method": "skip",
            "wsrep-provider-options": ";".join(f"{name}={value}" for name, value in provider.items()),
            "binlog-format": "ROW",
            "innodb-autoinc-lock-mode": 2,
        }
        return [*super().argv(), *(f"--{name}={value}" for name, value in options.items())]


@pytest.fixture(scope="module")
def first(run_directory):
    try:
        node = Node(run_directory)
    except Missing as missing:
        if "Galera" in str(missing):
            pytest.skip(str(missing))
        skip_kind("mysql", missing)
    yield node
    node.close()


@pytest.fixture(scope="module")
def second(first, run_directory):
    node = Node(run_directory, first)
    yield node
    node.close()


def _url(*servers):
    return f"mysql://balsam@{','.join(f'127.0.0.1:{one.port}' for one in servers)}/{DATABASE}"


@pytest.fixture(scope="module")
def path(first, second, tmp_path_factory):
    """A DB on the cluster, whose first node in the URL isn't ready."""
    path = tmp_path_factory.mktemp("galera") / "db"
    done = here.good(
        *("init", path, "--db-type", "mysql", "--url", _url(second, first)), env={"BALSAM_DB_PASSWORD": first.password}
    )
    assert (
        done.err.count("is a node of a Galera cluster: writes are safe only while all clients use the same node") == 1
    )
    assert "doesn't wait for its replicas" not in done.err
    return path


def test_the_node_that_is_ready_is_used(first, path, tmp_path):
    here.good("run", "--", "true", db=path)
    assert here.good("-o", "ids", "ls", db=path).ids == [1]
    here.good("backup", tmp_path / "saved", db=path)
    assert any("Galera" in line for line in here.good("status", "-o", "json", db=path).json["warnings"])
    assert "warning    the server at" in here.good("status", db=path).out


def test_a_node_that_is_not_ready_is_called_so(first, second, tmp_path):
    words = ["init", tmp_path / "db", "--db-type", "mysql", "--url", _url(second)]
    done = here.refused(*words, code=6, env={"BALSAM_DB_PASSWORD": first.password})
    assert "is a Galera node that is not ready: it has lost its quorum, or is still joining" in done


def test_a_server_that_takes_no_writes_is_left_for_one_that_does(first, second, path, caplog):
    first.execute("SET GLOBAL read_only=ON")
    try:
        with open_db(path) as db, ThreadPoolExecutor(1) as thread:
            answer = thread.submit(db.run, AddJobs(jobs=[Job(command="true")]), timeout=SECONDS)
            wait_until(lambda: "Waiting for the database" in caplog.text)
            first.execute("SET GLOBAL read_only=OFF")
            assert answer.result(SECONDS).first_id
            # On a connection that is open.
            first.execute("SET GLOBAL read_only=ON")
            with pytest.raises(Unavailable, match=r"none of .* takes writes now .* it is read-only, as a replica is"):
                db.run(AddJobs(jobs=[Job(command="true")]), timeout=1.0)
            first.execute("SET GLOBAL read_only=OFF")
            db.jobs.add(Job(command="true"))
    finally:
        first.execute("SET GLOBAL read_only=OFF")
    (line,) = caplog.messages
    assert f"{second.port}: it has no quorum, or is still joining" in line
    assert f"{first.port}: it is read-only" in line


def test_a_node_without_a_quorum_is_waited_for_and_named(first, second, path, caplog):
    with open_db(path) as db, ThreadPoolExecutor(1) as thread:
        db.jobs.add(Job(command="true"))
        second.process.send_signal(signal.SIGKILL)
        wait_until(lambda: not _is_ready(first))
        answer = thread.submit(db.run, AddJobs(jobs=[Job(command="true", name="later")]), timeout=SECONDS)
        wait_until(lambda: "Waiting for the database" in caplog.text)
        assert "it has no quorum" in caplog.text
        with pytest.raises(Unavailable, match="it has no quorum"):
            db.run(AddJobs(jobs=[Job(command="true")]), timeout=0.5)
        first.execute("SET GLOBAL wsrep_provider_options='pc.bootstrap=true'")
        assert answer.result(SECONDS).first_id
        assert db.jobs.where(name="later").count() == 1


def _is_ready(node):
    with contextlib.closing(node.connect()) as connection, contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("SHOW STATUS LIKE 'wsrep_ready'")
        return cursor.fetchone()[1] == "ON"
