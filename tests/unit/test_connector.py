"""``ServerConnector``: which server a driver's new connection goes to, and what is said when it can't."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from balsam_core.dbdir import address
from balsam_core.errors import AddressError, ServerNotRunning, Unavailable
from balsam_core.system.processes import start_of, this_machine
from balsam_core.transport import connector
from balsam_core.transport.connector import ServerConnector


@pytest.fixture
def db(db):
    address.withdraw(db)
    return db


def publish(db, *, pid=0, port=1, generation=1, **members):
    machine = this_machine()
    known = {"node": machine.node, "boot_id": machine.boot_id, "pid_namespace": machine.pid_namespace}
    pid = pid or os.getpid()
    start = start_of(pid) or 0.0
    made = address.Address(
        **{
            "state": "running",
            "host": "127.0.0.1",
            "port": port,
            "pid": pid,
            "start_time": start,
            "generation": generation,
        }
        | known
        | members
    )
    address.write(db, made)
    return made


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def refused(published):
    raise OSError(f"nobody at {published.port}")


def test_each_connection_goes_to_the_server_of_the_moment(db):
    opened = ServerConnector(db, lambda published: published.port)
    publish(db, port=11)
    assert opened() == 11
    publish(db, port=12, generation=2)
    assert opened() == 12


def test_without_a_server_the_command_that_starts_it_is_named(db):
    with pytest.raises(ServerNotRunning, match=f"start it with balsam dbserver --path={db.path}$"):
        ServerConnector(db, refused)()


def test_a_loopback_server_of_another_machine_is_not_looked_for_here(db):
    publish(db, node="login1", boot_id="other")
    with pytest.raises(Unavailable, match=r"restart it there with .*--host"):
        ServerConnector(db, refused)()


def test_a_driver_s_error_is_passed_on_while_the_server_may_come_back(db, monkeypatch):
    opened = ServerConnector(db, refused)
    publish(db, pid=dead_process())
    for _ in range(3):
        with pytest.raises(OSError, match="nobody"):
            opened()
    monkeypatch.setattr(connector, "RESTART_TIMEOUT", 0.0)
    with pytest.raises(ServerNotRunning, match=r"published at 127\.0\.0\.1:1, is not there"):
        opened()
    publish(db, port=2, generation=2, pid=dead_process())  # a new server has all the time again
    monkeypatch.setattr(connector, "RESTART_TIMEOUT", 60.0)
    with pytest.raises(OSError, match="nobody"):
        opened()


def test_a_server_that_lives_and_listens_is_waited_for(db, monkeypatch):
    monkeypatch.setattr(connector, "RESTART_TIMEOUT", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        publish(db, port=listener.getsockname()[1])
        opened = ServerConnector(db, refused)
        for _ in range(3):
            with pytest.raises(OSError, match="nobody"):
                opened()
    with pytest.raises(ServerNotRunning):  # the process lives, but nothing listens any more
        opened()


def test_what_can_not_pass_by_repeating_is_told_at_once(db):
    publish(db)

    def refuse(published):
        raise Unavailable("the password is wrong")

    with pytest.raises(Unavailable, match=r"^the password is wrong$"):
        ServerConnector(db, refuse)()


def test_a_missing_address_file_is_told(db):
    db.address_file.unlink()
    with pytest.raises(AddressError):
        ServerConnector(db, refused)()
