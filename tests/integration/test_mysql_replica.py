"""An adopted MariaDB server with a replica that it doesn't wait for, and the replica itself."""

from __future__ import annotations

import contextlib

import pytest
from balsam_program import here
from db_servers import MariaDBServer, Missing, skip_kind

from balsam_core.testing.tools import wait_until

pytest.importorskip("balsam_mysql")

DATABASE = "test_replicated"
ASYNCHRONOUS = "is replicated, but doesn't wait for its replicas: a failover may undo writes that were acknowledged"


class Primary(MariaDBServer):
    number = 1

    def argv(self):
        return [*super().argv(), "--log-bin=log", f"--server-id={self.number}", "--binlog-format=ROW"]


class Replica(Primary):
    number = 2


@pytest.fixture(scope="module")
def servers(run_directory):
    with contextlib.ExitStack() as stack:
        try:
            primary, replica = (
                stack.enter_context(contextlib.closing(one(run_directory))) for one in (Primary, Replica)
            )
        except Missing as missing:
            skip_kind("mysql", missing)
        for server in (primary, replica):
            server.create_database(DATABASE)
        yield primary, replica


def _init(path, server):
    words = ["init", path, "--db-type", "mysql", "--url", f"mysql://balsam@127.0.0.1:{server.port}/{DATABASE}"]
    return here(*words, env={"BALSAM_DB_PASSWORD": server.password})


def test_a_replica_that_is_not_waited_for_is_warned_about(servers, tmp_path):
    primary, replica = servers
    assert ASYNCHRONOUS not in _init(tmp_path / "db", primary).err
    with contextlib.closing(primary.connect()) as connection, contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("SELECT @@gtid_binlog_pos")
        (position,) = cursor.fetchone()
    replica.execute(
        "RESET MASTER",
        f"SET GLOBAL gtid_slave_pos='{position}'",
        f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={primary.port}, MASTER_USER='admin', "
        f"MASTER_PASSWORD='{primary.password}', MASTER_USE_GTID=slave_pos",
        "SET GLOBAL read_only=ON",
        "START SLAVE",
    )
    wait_until(
        lambda: any(
            ASYNCHRONOUS in line for line in here.good("status", "-o", "json", db=tmp_path / "db").json["warnings"]
        )
    )
    assert f"Warning: the server at 127.0.0.1:{primary.port} {ASYNCHRONOUS}" in _init(tmp_path / "db", primary).err
    refused = _init(tmp_path / "other", replica)
    assert refused.code == 6
    assert "takes no writes, as a replica does" in refused.err
    primary.execute("SET GLOBAL rpl_semi_sync_master_enabled=ON")
    replica.execute("STOP SLAVE", "SET GLOBAL rpl_semi_sync_slave_enabled=ON", "START SLAVE")
    wait_until(lambda: ASYNCHRONOUS not in here.good("status", db=tmp_path / "db").out)
