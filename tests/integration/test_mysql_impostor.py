"""A DB's watchdog and server are dead, and somebody else on the machine has bound the port that is still published."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from balsam_program import here
from served_db import ServedDB

from balsam_core import Job, open_db
from balsam_core.backends import registry
from balsam_core.testing.tools import wait_until

MySQLdb = pytest.importorskip("MySQLdb")
SERVER = shutil.which("mariadbd", path=os.environ.get("PATH", "") + ":/usr/sbin")
pytestmark = pytest.mark.skipif(not SERVER, reason="no MariaDB server programs")

DISTRUST = "isn't the one that is trusted"
# Protocol 4.1, secure authentication, plugins, databases; and the bit for TLS.
ABILITIES, ABLE_OF_TLS = 0x003BA20F, 0x0800


@pytest.fixture(scope="module")
def orphan(tmp_path_factory):
    """A DB with a job, whose processes were killed; its address, and the file that its job would make."""
    place = tmp_path_factory.mktemp("impostor")
    db = ServedDB(place / "db", db_type="mysql")
    try:
        address = db.start()
        with open_db(db.path) as opened:
            opened.jobs.add([Job(command=f"touch {place}/ran", workflow="w")])
        server = Path(f"/proc/{db.server}")
        os.kill(db.watchdog, signal.SIGKILL)
        wait_until(lambda: not server.exists(), "the server's death")
        yield db, address, place / "ran"
    finally:
        db.close()


@pytest.fixture
def ask(orphan):
    """A function that has users' programs try the port; says what they said, after it is clear that nothing was run."""
    db, address, ran = orphan

    def attempt():
        said = [here("ls", db=db.path).err, here("launcher", "--consume-all", db=db.path).err]
        with pytest.raises(Exception, match=DISTRUST) as caught:
            registry.load("mysql").backup(db.dir, address, db.path.parent / "saved")
        assert not (db.path.parent / "saved").exists()
        assert not ran.exists()
        return [*said, str(caught.value)]

    return attempt


def packet(number, data):
    return struct.pack("<I", len(data))[:3] + bytes([number]) + data


def answer(peer):
    with contextlib.suppress(OSError):
        head = peer.recv(4, socket.MSG_WAITALL)
        if len(head) == 4:
            return peer.recv(int.from_bytes(head[:3], "little"), socket.MSG_WAITALL)
    return b""


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("plugin", ["mysql_clear_password", "dialog"])
def test_one_that_asks_for_the_password_is_told_nothing(orphan, ask, plugin, tls):
    db, address, _ = orphan
    abilities = ABILITIES | (ABLE_OF_TLS if tls else 0)
    greeting = b"\x0a5.5.5-10.11.6-MariaDB\0" + struct.pack("<I", 7) + b"abcdefgh\0"
    greeting += struct.pack("<HBHHB", abilities & 0xFFFF, 45, 2, abilities >> 16, 21)
    greeting += b"\0" * 10 + b"ijklmnopqrst\0mysql_native_password\0"
    request = b"\xfe" + plugin.encode() + b"\0" + (b"\x02Password: " if plugin == "dialog" else b"")
    heard = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as peer:
                    peer.settimeout(5)
                    peer.sendall(packet(0, greeting))
                    heard.append(answer(peer))
                    peer.sendall(packet(2, request))
                    heard.append(answer(peer))

    with socket.create_server((address.host, address.port)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            if not tls:
                assert all(DISTRUST in line for line in ask())
            else:
                with pytest.raises(Exception):  # noqa: B017, PT011  (any: this one breaks the handshake off)
                    registry.load("mysql").create_engine(db.dir, "owner").connect()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert heard
    assert (db.path / "keys" / "mysql_password").read_bytes() not in b"".join(heard)
    # Not even who it is, and so no proof of the password to try guesses on.
    assert b"balsam\0" not in b"".join(heard)


@pytest.mark.parametrize("tls", [False, True])
def test_one_with_forged_data_gets_no_job_run(orphan, ask, tls, tmp_path):
    db, address, _ = orphan
    data = tmp_path / "data"
    shutil.copytree(db.path / "mysql" / "data", data)
    # It has every word of the true one's data, and takes whoever comes.
    argv = [SERVER, "--no-defaults", f"--datadir={data}", "--innodb-log-file-size=64M", "--skip-grant-tables"]
    argv += ["--bind-address=127.0.0.1", f"--port={address.port}", f"--socket={tmp_path}/s", f"--pid-file={tmp_path}/p"]
    if tls:
        from balsam_core.system.certificates import make_certificate

        make_certificate(tmp_path / "c", tmp_path / "k")
        argv += [f"--ssl-cert={tmp_path}/c", f"--ssl-key={tmp_path}/k"]
    else:
        argv += ["--skip-ssl"]
    argv += ["--user=root"] if os.geteuid() == 0 else []

    def serves():
        try:
            MySQLdb.connect(host=address.host, port=address.port, user="x", db="balsam", ssl_mode="DISABLED").close()
        except MySQLdb.OperationalError:
            return False
        return True

    tie = ["setpriv", "--pdeathsig", "KILL", "--"] if sys.platform == "linux" and shutil.which("setpriv") else []
    with subprocess.Popen([*tie, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as rogue:
        try:
            wait_until(serves, "the impostor")
            assert all(DISTRUST in line for line in ask())
        finally:
            rogue.kill()
