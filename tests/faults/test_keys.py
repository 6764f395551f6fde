"""Who may talk to the server: whoever can read the owner's key, and nobody else; and where the key is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq
import zmq.utils.z85
from amounts import at_most
from balsam_program import BALSAM, Program
from curve_peers import Peer, status
from raw_peers import greeting
from served_db import ServedDB
from tcp_faults import FaultyLink

from balsam_core import BalsamError, Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.dbdir import address
from balsam_core.dbdir.directory import DBDir
from balsam_core.proxy.keys import ClientKeys, client_keys
from balsam_core.proxy.protocol import StatusRequest

STRANGER = 65534  # nobody's uid
SECRET_FILES = ("server.key", "client.key")


def where(served):
    return served.address.host, served.address.port


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    """A server that several tests share; none of them may end it, or change a row."""
    db = ServedDB(tmp_path_factory.mktemp("keys") / "db")
    db.start()
    before, rows = db.address, all_rows(db.path)
    yield db
    assert db.address == before
    assert all_rows(db.path) == rows
    db.stop()
    db.close()


def all_rows(path):
    with closing(sqlite3.connect(f"file:{path}/db.sqlite3?mode=ro", uri=True)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: connection.execute(f"SELECT * FROM {name}").fetchall()
            for name in tables
            if name != "processed_requests"
        }


@contextmanager
def another_key(db, content=None, mode=0o600):
    """Another ``client.key`` for a while; None for none."""
    file = db.keys / "client.key"
    aside = file.with_name("aside")
    file.rename(aside)
    try:
        if content is not None:
            file.write_bytes(content)
            file.chmod(mode)
        yield
    finally:
        aside.rename(file)


def refusal(path):
    """Try to add a job; returns the error and the seconds until it came."""
    began = time.monotonic()
    with pytest.raises(BalsamError) as caught, open_db(path) as opened:
        opened.jobs.add(Job(name="intruder", command="true"))
    message = str(caught.value)
    assert message.isprintable()
    assert "balsam dbserver" in message or "keys/" in message or "chmod" in message
    return message, time.monotonic() - began


def pair():
    return tuple(key.decode() for key in zmq.curve_keypair())


def test_wrong_keys_are_refused(lasting, tmp_path, verdict):
    """The key is missing, wrong, or open to others: programs are refused in one line (T27)."""
    right = client_keys(lasting.dir)
    public, secret = pair()
    good = (lasting.dir.keys / "client.key").read_bytes()
    cases = {
        "no key": (None, 0o600, "missing"),
        "another client's": (encoded(public, secret, right.server), 0o600, "doesn't accept the key"),
        "another server's": (encoded(right.public, right.secret, public), 0o600, "is not the server of"),
        "public without its secret": (encoded(right.public, secret, right.server), 0o600, "is not the server of"),
        "garbage": (b"\0" * 100, 0o600, "damaged"),
        "cut short": (good[:-10], 0o600, "damaged"),
        "readable for the group": (good, 0o640, "chmod 600"),
        "readable for all": (good, 0o604, "chmod 600"),
        "huge": (b" " * 100_000 + good, 0o600, "can't be read"),
    }
    # Each in a copy of the directory, which leads to the same server.
    copies = [DBDir.open(shutil.copytree(lasting.path, tmp_path / str(number))) for number in range(len(cases))]
    for copy in copies:
        address.write(copy, msgspec.structs.replace(lasting.address, directory=copy.path.stat().st_ino))

    def knock(db, case):
        content, mode, expected = case
        with another_key(db, content, mode):
            message, took = refusal(db.path)
        assert expected in message
        return took

    with ThreadPoolExecutor(len(cases)) as pool:
        took = dict(zip(cases, pool.map(knock, copies, cases.values()), strict=True))
    assert max(took.values()) <= at_most(5)
    with open_db(lasting.path) as opened:
        assert opened.jobs.count() == 0
    verdict(
        "T27",
        "no key, wrong key",
        "refused in one line, 0 rows changed: "
        + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items()),
    )


def encoded(public, secret, server):
    return json.dumps({"public": public, "secret": secret, "server": server}).encode()


def test_who_is_refused_sends_nothing_more(lasting, verdict):
    """A client comes with a valid key that is not the DB's: none of its messages reaches the server (T27)."""
    right = client_keys(lasting.dir)
    answered = status(lasting.dir, where(lasting)).calls
    with FaultyLink(where(lasting)) as link:
        public, secret = pair()
        stranger = ClientKeys(public=public, secret=secret, server=right.server)
        with Peer(lasting.dir, ("127.0.0.1", link.port), keys=stranger) as peer:
            for number in range(1, 50):
                peer.send(StatusRequest(number))
            assert peer.receive(1.5) is None
        assert link.to_server.passed == 0, "no message has left it: its handshake never ended"
    log = "".join(file.read_text() for file in lasting.dir.log.glob("server_*"))
    assert "another key" in log
    assert status(lasting.dir, where(lasting)).calls - answered <= 10
    verdict("T27", "valid CURVE, refused by ZAP", "0 messages sent, the refusal is in the server's log")


def test_a_refused_client_does_not_fill_the_log(lasting):
    """A client with a wrong key connects again and again: the log hardly grows (T27)."""
    log = next(lasting.dir.log.glob("server_*"))
    size = log.stat().st_size
    public, secret = pair()
    stranger = ClientKeys(public=public, secret=secret, server=client_keys(lasting.dir).server)
    with Peer(lasting.dir, where(lasting), keys=stranger) as peer:
        assert peer.receive(1) is None
    assert log.stat().st_size - size < 20_000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused(lasting, tmp_path_factory, verdict):
    """Another user comes while all but the keys is open to him: he is refused in one line (T27)."""
    setpriv = shutil.which("setpriv") or pytest.skip("setpriv is missing")
    path = lasting.path
    # The worst case: all but the keys is open.
    opened = [place for place in (*path.parents, path) if place != Path("/") and not place.stat().st_mode & 0o001]
    before = {place: place.stat().st_mode for place in [*opened, path / "dbwriter_address", path / "balsam.toml"]}
    env = {**os.environ, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    become = [setpriv, f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "--"]
    if subprocess.run([*become, sys.executable, "-c", "import balsam_core.cli"], check=False, env=env).returncode:
        pytest.skip("another user can't run this Python")

    balsam = Program([*become, *BALSAM], env=env, cwd="/")

    def ask(*words):
        began = time.monotonic()
        line = balsam.refused(*words, code=8)
        return line, time.monotonic() - began

    _, first = ask("ls", "--db", str(path))
    try:
        for place, mode in before.items():
            place.chmod(stat.S_IMODE(mode) | 0o055)
        (path / "keys").chmod(0o700)
        open_but_keys, second = ask("ls", "--db", str(path))
        assert "keys" in open_but_keys
        (path / "keys").chmod(0o755)
        only_files, third = ask("job", "--name", "intruder", "--command", "true", "--db", str(path))
        assert "client.key" in only_files
        assert "permission denied" in only_files
    finally:
        (path / "keys").chmod(0o700)
        for place, mode in before.items():
            place.chmod(stat.S_IMODE(mode))
    assert max(first, second, third) <= 5
    verdict("T27", "another user", f"refused in one line after {max(first, second, third):.1f} s, 0 rows changed")


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_everything_is_the_owner_s_alone(tmp_path, umask, verdict):
    """The umask is lax: all files of the DB are the owner's alone (T40)."""
    previous = os.umask(umask)
    try:
        served = ServedDB(tmp_path / "db")
        try:
            served.start()
            with open_db(served.path) as db:
                db.jobs.add(Job(name="a", command="true"))
            check_modes(served.path)
            served.wait_for_another(served.kill_server())
            served.stop()
            check_modes(served.path)
        finally:
            served.close()
    finally:
        os.umask(previous)
    verdict("T40", f"modes under umask {umask:03o}", "directories 0700, files 0600, keys too")


def check_modes(path):
    for place in [path, *path.rglob("*")]:
        status = place.stat(follow_symlinks=False)
        mode = stat.S_IMODE(status.st_mode)
        assert not mode & 0o077, (oct(mode), place)
        if place.parent.name == "keys":
            assert mode == 0o600, place
    assert stat.S_IMODE((path / "keys").stat().st_mode) == 0o700


def test_no_secret_is_where_it_should_not_be(lasting, verdict):
    """All files, command lines and environments are searched: no secret key is outside of ``keys/`` (T40)."""
    secrets = set()
    for name in SECRET_FILES:
        keys = json.loads((lasting.dir.keys / name).read_text())
        for key in ("secret",):
            secrets |= {keys[key].encode(), zmq.utils.z85.decode(keys[key].encode())}
    secrets |= {secret.hex().encode() for secret in secrets if len(secret) == 32}
    assert len(secrets) == 6
    refusal_of_a_loose_key(lasting)
    looked = 0
    for place in lasting.path.rglob("*"):
        if place.is_file() and place.parent.name != "keys":
            content = place.read_bytes()
            looked += 1
            assert not any(secret in content for secret in secrets), place
    server = psutil.Process(lasting.server)
    ours = [lasting.watchdog, server.pid, *(child.pid for child in server.children(recursive=True))]
    assert len(ours) == 4
    processes = 0
    for pid in psutil.pids():
        for what in ("cmdline", "environ"):
            try:
                content = Path(f"/proc/{pid}/{what}").read_bytes()
            except OSError:
                assert pid not in ours
                continue
            processes += what == "cmdline"
            assert not any(secret in content for secret in secrets), (pid, what)
    for log in lasting.dir.log.iterdir():
        assert not re.search(r"(secret|_key)[\"'=: ]+[^ ]{40}", log.read_text()), log
    verdict(
        "T40", "secrets in argv, environment, logs, address, lease", f"0 in {looked} files and {processes} processes"
    )


def refusal_of_a_loose_key(lasting):
    content = (lasting.dir.keys / "client.key").read_bytes()
    with another_key(lasting.dir, content, 0o644):
        message, _ = refusal(lasting.path)
    assert "chmod 600" in message


def listeners(served):
    server = psutil.Process(served.server)
    everyone = [server, *server.children(recursive=True), psutil.Process(served.watchdog)]
    return {
        (one.type, *one.laddr)
        for process in everyone
        for one in process.net_connections(kind="inet")
        if one.status == psutil.CONN_LISTEN or one.type != socket.SOCK_STREAM
    }


def test_there_is_one_listener(lasting, verdict):
    """Weaker protocols are asked for: the one listener of the server speaks CURVE and nothing else (T27)."""
    assert listeners(lasting) == {(socket.SOCK_STREAM, "127.0.0.1", lasting.address.port)}
    with socket.create_connection(where(lasting), timeout=10) as peer:
        peer.sendall(greeting("CURVE"))
        said = b""
        while len(said) < 64 and (piece := peer.recv(64)):
            said += piece
    assert said[12:17] == b"CURVE"
    for weaker in ("NULL", "PLAIN"):
        with socket.create_connection(where(lasting), timeout=10) as peer, suppress(ConnectionResetError):
            peer.sendall(greeting(weaker))
            while peer.recv(100):
                pass
    verdict(
        "T27", "listeners of watchdog, server and readers", "one, on the loopback, which speaks CURVE and nothing else"
    )


def test_server_refuses_loose_keys(make_served, verdict):
    """Key files are open to the group: the server does not start and names file and remedy (T40)."""
    served = make_served()
    served.start("--host", "0.0.0.0")
    assert listeners(served) == {(socket.SOCK_STREAM, "0.0.0.0", served.address.port)}
    served.stop()
    for name in SECRET_FILES:
        file = served.dir.keys / name
        file.chmod(0o640)
        done = served.command()
        assert done.code == 8, done
        assert "chmod 600" in done.error
        assert name in done.error
        file.chmod(0o600)
    verdict("T40", "loose key files", "the server does not start and names file and remedy; clients refuse them")


def test_a_planted_link_is_no_key(tmp_path):
    """A symbolic link is planted in place of a key: it is refused (T40)."""
    db = initialise(tmp_path / "db").db
    (db.path / "elsewhere").write_text("{}")
    (db.keys / "client.key").symlink_to(db.path / "elsewhere")
    with pytest.raises(BalsamError, match="symbolic link"):
        client_keys(db)
