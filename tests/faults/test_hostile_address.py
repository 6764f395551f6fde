"""``dbwriter_address`` is damaged or leads to a trap: a clear error soon, and nothing is said to a stranger."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import msgspec
import pytest
import zmq
from amounts import FULL, at_most
from balsam_program import child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsam_core import BalsamError, Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.dbdir.address import Address
from balsam_core.dbdir.directory import DBDir
from balsam_core.model.calls import CountJobs
from balsam_core.proxy.keys import client_keys, make_keys
from balsam_core.proxy.protocol import NAME
from balsam_core.system.processes import start_of, this_machine
from balsam_core.testing.tools import wait_until

SECRET = "the-payload-that-nobody-may-see"
HELLO = 64 + 202  # bytes: what CURVE says before it knows the server


def published(**members):
    machine = this_machine()
    ours = {
        "state": "running",
        "host": "127.0.0.1",
        "protocol": NAME,
        "node": machine.node,
        "boot_id": machine.boot_id,
        "pid": os.getpid(),
        "start_time": start_of(os.getpid()),
        "generation": 7,
    }
    return Address(**{**ours, **members})


def publish(db, address):
    db.address_file.write_bytes(msgspec.json.encode(address) if isinstance(address, Address) else address)


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    made = initialise(tmp_path_factory.mktemp("address") / "db").db
    make_keys(made)
    return made


# ---- garbage

with socket.create_server(("127.0.0.1", 0)) as _nobody:
    NOBODY = _nobody.getsockname()[1]
GOOD = msgspec.json.encode(published(port=NOBODY))
HOSTS = [
    "ipc:///tmp/x", "inproc://x", "tcp://127.0.0.1", "127.0.0.1\n", "127.0.0.1\nevil", "a b", "*", "", "\0", "::",
    "::1",
    "::::", "[::1]", "[", "%", "%%%", ".", "-", "..", "1", "0", "0.0.0.0", "127.0.0.1%lo", "fe80::1%lo", "127.0.0.1:80",
    "127.1", "lo;127.0.0.1", "💥", "a" * 255, "a" * 300, "a." * 120, "-rf", "999.999.999.999", "localhost.", "1:2:3",
    "127.0.0.1/../x", "@/tmp/x", "unix:/tmp/x", "\u202e1.0.0.721",
]  # fmt: skip
VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20) | st.just([[]])
members = st.fixed_dictionaries(
    {"host": st.sampled_from(HOSTS) | st.text(max_size=40).filter(lambda host: not host.isascii())},
    optional={
        "format": st.integers(-1, 3),
        "port": st.sampled_from([NOBODY, 0, -1, 65536, 2**70]),
        "pid": st.sampled_from([1, 0, -1, 2**31, 2**70]),
        "protocol": st.sampled_from([NAME, "balsam/2", "postgresql", "", "\n\x1b[2J"]),
        "node": st.sampled_from([this_machine().node, "elsewhere", "a\nb", "\x1b[31m"]),
        "boot_id": st.text(max_size=9),
        "epoch": st.integers(-1, 2**70),
        "start_time": st.floats(allow_nan=False, allow_infinity=False),
        "details": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    },
)


def _damage(data, at, what, more):
    at %= len(data)
    return {"cut": data[:at], "put": data[:at] + more + data[at:], "change": data[:at] + more + data[at + 1 :]}[what]


garbage = st.one_of(
    st.binary(max_size=200),
    st.builds(_damage, st.just(GOOD), st.integers(0, 999), st.sampled_from(["cut", "put", "change"]),
              st.binary(max_size=9)),
    st.builds(lambda name, value: json.dumps({**json.loads(GOOD), name: value}, allow_nan=True).encode(),
              st.sampled_from(list(json.loads(GOOD))), VALUES),
    st.builds(lambda other: json.dumps({**json.loads(GOOD), **other}).encode("utf-8", "surrogatepass"), members),
    st.sampled_from([b"", b"[" * 100_000, b"{" * 60_000, b"x" * 1_000_000, GOOD + b" " * 1_000_000, GOOD * 2, b"null",
                     b"\xef\xbb\xbf" + GOOD, GOOD.replace(b"{", b'{"port":1,'), GOOD.decode().encode("utf-16")]),
)  # fmt: skip


def refused(db, seconds=0.2):
    """Use the DB; returns the error, which is one printable line."""
    began = time.monotonic()
    with pytest.raises(BalsamError) as caught, open_db(db.path) as opened:
        opened.transport.run(CountJobs(), timeout=seconds)
    assert time.monotonic() - began < at_most(5)
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 2000
    assert str(db.path) in message
    return caught.value


@given(garbage)
@settings(max_examples=2000 if FULL else 100, suppress_health_check=list(HealthCheck))
def test_garbage_is_a_clear_error(db, data):
    """The address file holds garbage: clients get a clear error and leave it alone (T19)."""
    publish(db, data)
    try:
        told = json.loads(data)
        stopped = told["state"] == "stopped" or told["directory"] not in {0, db.path.stat().st_ino}  # of a copy
    except (ValueError, TypeError, KeyError, RecursionError):
        stopped = False
    try:
        refused(db)
    except pytest.fail.Exception:
        assert stopped or b'"state"' not in data, "it worked, so no server was published"
    assert db.address_file.read_bytes() == data, "nobody has touched it"


@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "device", "missing", "socket"])
def test_what_is_no_file_is_a_clear_error(db, tmp_path, kind):
    """The address is a link, a pipe or anything but a file: clients get a clear error (T19)."""
    file = db.address_file
    aside = tmp_path / "aside"
    publish(db, GOOD)
    file.rename(aside)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        match kind:
            case "link":
                file.symlink_to(aside)
            case "pipe":
                os.mkfifo(file)
            case "directory":
                file.mkdir()
            case "device":
                file.symlink_to("/dev/zero")
            case "socket":
                listener.bind(os.fspath(file))
        try:
            assert refused(db).code == "address"
        finally:
            if kind == "directory":
                file.rmdir()
            elif kind != "missing":
                file.unlink()


# ---- traps


class Trap:
    """Listens at a port, keeps all that is said to it, and passes it on to a ZeroMQ socket, if there is one."""

    def __init__(self, behind: int | None = None, says: bytes = b"") -> None:
        self.heard: list[bytes] = []
        self._behind, self._says = behind, says
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._sockets.append(peer)
                back = None
                if self._behind:
                    back = socket.create_connection(("127.0.0.1", self._behind))
                    self._sockets.append(back)
                    self._start(self._carry, back, peer, None)
                elif self._says:
                    peer.sendall(self._says)
                self.heard.append(b"")
                self._start(self._carry, peer, back, len(self.heard) - 1)

    def _start(self, target, *args):
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _carry(self, source, target, number):
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if number is not None:
                    self.heard[number] += piece
                if target:
                    target.sendall(piece)
        for end in (source, target):
            if end:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self):
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)


@contextmanager
def zeromq_trap(mechanism, db):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        details = {}
        if mechanism == "PLAIN":
            router.plain_server = True
        elif mechanism == "CURVE":
            public, router.curve_secretkey = zmq.curve_keypair()
            router.curve_server = True
            details = {"server_key": public.decode(), "public": public.decode()}
        trap = Trap(router.bind_to_random_port("tcp://127.0.0.1"))
        try:
            yield trap, details
            assert not router.poll(50), "a message has arrived"
        finally:
            trap.close()


@contextmanager
def raw_trap(says):
    trap = Trap(says=says)
    try:
        yield trap, {}
    finally:
        trap.close()


TRAPS = {
    "ZeroMQ without security": lambda db: zeromq_trap("NULL", db),
    "ZeroMQ with passwords": lambda db: zeromq_trap("PLAIN", db),
    "ZeroMQ with another key": lambda db: zeromq_trap("CURVE", db),
    "HTTP": lambda _db: raw_trap(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "SSH": lambda _db: raw_trap(b"SSH-2.0-OpenSSH_9.6\r\n"),
}


def test_traps_hear_nothing(db, tmp_path, verdict):
    """The address leads to another program: clients get a clear error in 5 s and send it nothing (T19)."""
    publish(db, b"{}")
    copies = [DBDir.open(shutil.copytree(db.path, tmp_path / f"db{number}")) for number in range(len(TRAPS))]

    def fall_into(db, kind):
        with TRAPS[kind](db) as (trap, details):
            publish(db, published(port=trap.port, details=details))
            began = time.monotonic()
            with open_db(db.path) as opened, pytest.raises(BalsamError) as caught:
                opened.jobs.add(Job(name=SECRET, command=f"echo {SECRET}"))
            took = time.monotonic() - began
            assert f"is not the server of {db.path}" in str(caught.value)
            assert "balsam dbserver" in str(caught.value)
            assert caught.value.code == "unavailable"
            wait_until(lambda: trap.heard)
            if kind == "ZeroMQ with another key":
                began = time.monotonic()
                child.refused("ls", "--db", db.path, code=6)
                assert time.monotonic() - began < at_most(6)
            check_heard(db, trap.heard)
            return took, max(map(len, trap.heard))

    with ThreadPoolExecutor(len(TRAPS)) as pool:
        fates = dict(zip(TRAPS, pool.map(fall_into, copies, TRAPS), strict=True))
    assert max(took for took, _ in fates.values()) <= at_most(5)
    verdict(
        "T19",
        "address leads to another program",
        ", ".join(
            f"{kind}: error after {took:.1f} s, {heard} bytes of greeting" for kind, (took, heard) in fates.items()
        ),
    )


def check_heard(db, heard):
    for said in heard:
        assert len(said) <= HELLO
        assert SECRET.encode() not in said
        assert client_keys(db).secret.encode() not in said
        assert len(said) <= 64 or said[12:17] == b"CURVE"


def test_a_silent_trap_hears_nothing(db, verdict):
    """The address leads to a silent program: clients get an error at their deadline, send nothing (T19)."""
    with raw_trap(b"") as (trap, _):
        publish(db, published(port=trap.port))
        began = time.monotonic()
        with open_db(db.path) as opened, pytest.raises(BalsamError) as caught:
            opened.transport.run(CountJobs(), timeout=1)
        took = time.monotonic() - began
        assert "didn't answer" in str(caught.value)
        assert str(trap.port) in str(caught.value)
        check_heard(db, trap.heard)
    assert took < at_most(2.5)
    verdict("T19", "address leads to a port that says nothing", f"error at the caller's deadline of 1 s: {took:.1f} s")


def test_an_address_of_another_host_s_loopback(db, verdict):
    """The address is the loopback of another host: the error says how to start the server for other hosts (T19)."""
    publish(db, published(port=NOBODY, node="elsewhere", boot_id="another"))
    began = time.monotonic()
    error = refused(db)
    took = time.monotonic() - began
    assert "--host 0.0.0.0" in str(error)
    verdict("T19", "loopback address read on another host", f"error after {took * 1e3:.0f} ms")
