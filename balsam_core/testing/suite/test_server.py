"""``balsam_start_server``: a server that starts, answers, comes back by itself, and stops without a trace."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Self, TypeVar

import psutil
import pytest

from balsam_core import open_db
from balsam_core.dbdir import address
from balsam_core.dbdir.lease import LeaseObserver
from balsam_core.errors import BalsamError, OutcomeUnknown, ServerNotRunning, Unavailable
from balsam_core.model import calls
from balsam_core.model.job import Job
from balsam_core.plugin import is_loopback
from balsam_core.plugin_types import ServerPolicy
from balsam_core.system import processes
from balsam_core.testing.cli import balsam
from balsam_core.testing.programs import outputs, running
from balsam_core.testing.tools import kill_server, wait_until
from balsam_core.watchdog import control

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.backends.registry import Backend
    from balsam_core.dbdir.address import Address
    from balsam_core.testing.fixtures import StoppedDB
    from balsam_core.testing.run import SuiteRun

UNAVAILABLE = 6  # exit code
_T = TypeVar("_T")
INVALID_INPUT = 5
GARBAGE = b"\x00\x00\x00\x00 hello \xff\r\n" * 50
COMMAND_SECONDS = 45  # in which a command must end where another program answers in the server's place


@pytest.fixture
def server_db(stopped_db: StoppedDB, backend: Backend) -> StoppedDB:
    """``stopped_db``, where the backend has a server that can be started."""
    if backend.identity.server is ServerPolicy.NONE:
        pytest.skip("this backend has no server")
    return stopped_db


def test_without_its_server_a_command_names_the_one_that_starts_it(stopped_db: StoppedDB, backend: Backend) -> None:
    if backend.identity.server is ServerPolicy.REQUIRED or backend.served_only:
        assert "balsam dbserver" in balsam.refused("--db", stopped_db.path, "ls", code=UNAVAILABLE)
        with pytest.raises(ServerNotRunning, match="balsam dbserver"), open_db(stopped_db.path) as db:
            db.info()
    else:
        balsam.good("--db", stopped_db.path, "ls")


def test_a_backend_without_server_says_so(stopped_db: StoppedDB, backend: Backend) -> None:
    if backend.identity.server is not ServerPolicy.NONE:
        pytest.skip("this backend has a server")
    assert backend.identity.title in balsam.refused("dbserver", "--path", stopped_db.path, code=INVALID_INPUT)


def test_a_server_starts_once_answers_and_stops(server_db: StoppedDB, suite_run: SuiteRun) -> None:
    first, second = (balsam.good("dbserver", "--path", server_db.path, "-o", "json").json for _ in range(2))
    assert (first.pop("already"), second.pop("already")) == (False, True)
    assert first == second
    with open_db(server_db.path) as db:
        assert db.info().db_id == server_db.directory.id
    status = balsam.good("dbserver", "--status", "--path", server_db.path, "-o", "json").json
    assert (status["state"], status["pid"]) == ("running", first["pid"])
    started_at = processes.start_of(first["pid"])
    assert started_at is not None
    stopped = [balsam.good("dbserver", "--stop", "--path", server_db.path, "-o", "json").json for _ in range(2)]
    assert [one["result"] for one in stopped] == ["stopped", "none"]
    assert address.read(server_db.directory) is None
    assert not processes.is_alive(first["pid"], started_at)
    assert not suite_run.remaining_processes(server_db.path), "the server left processes"
    with pytest.raises(OSError, match=r".*"):
        socket.create_connection((first["host"], first["port"]), timeout=5).close()


def test_a_server_listens_on_the_published_address_only(server_db: StoppedDB) -> None:
    published = control.start(server_db.directory).address
    assert is_loopback(published.host), "unless it is told a host, a server is for this machine alone"
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connections in _tell(published, lambda process: process.net_connections(kind="inet"))
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
    }
    assert {port for _, port in listening} == {published.port}
    wide = {ip for ip, _ in listening if not is_loopback(ip)}
    assert not wide, f"it listens at {wide}, which {published.host} does not say"


def test_no_secret_is_in_the_address_or_on_a_command_line(server_db: StoppedDB) -> None:
    published = control.start(server_db.directory).address
    texts = [server_db.directory.address_file.read_text(), server_db.directory.config_file.read_text()]
    texts += [" ".join(line) for line in _tell(published, psutil.Process.cmdline)]
    for key in server_db.directory.keys.rglob("*"):
        if key.is_file():
            for line in key.read_bytes().splitlines():
                secret = line.decode(errors="replace").strip()
                if len(secret) >= 16 and not secret.startswith(("-----", "#")):
                    assert not any(secret in text for text in texts), f"a line of {key.name} is there"


def test_a_killed_server_comes_back_and_nothing_is_lost_or_doubled(server_db: StoppedDB) -> None:
    before = control.start(server_db.directory).address
    with open_db(server_db.path) as db:
        db.jobs.remove()

    def kill() -> None:
        os.kill(before.pid, signal.SIGKILL)
        _wait_for_another(server_db, before)

    _assert_exact(server_db, _written_while(server_db, kill))


def test_a_server_whose_port_is_taken_comes_back_at_another(server_db: StoppedDB) -> None:
    before = control.start(server_db.directory).address
    watchdog = LeaseObserver(server_db.directory).observe().lease
    assert watchdog is not None
    with open_db(server_db.path) as db:
        db.jobs.remove()

    def take_port() -> None:
        os.kill(watchdog.pid, signal.SIGSTOP)
        try:
            os.kill(before.pid, signal.SIGKILL)
            taken = wait_until(lambda: _listen(before), "the port's release")
        finally:
            os.kill(watchdog.pid, signal.SIGCONT)
        assert taken is not None
        with taken:
            assert _wait_for_another(server_db, before).port != before.port

    _assert_exact(server_db, _written_while(server_db, take_port))


def test_nothing_passes_by_a_server_that_hangs(server_db: StoppedDB) -> None:
    """A deadline is kept, and the files are not written behind the server's back."""
    published = control.start(server_db.directory).address
    with open_db(server_db.path) as db:
        before = db.jobs.count()
    os.kill(published.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(BalsamError) as caught, open_db(server_db.path) as db:
            db.run(calls.AddJobs(jobs=[Job(command="x")]), timeout=1.5)
        lasted = time.monotonic() - began
    finally:
        os.kill(published.pid, signal.SIGCONT)
    assert lasted < 15, f"the deadline was 1.5 s, the error came after {lasted:.0f} s"
    assert isinstance(caught.value, (Unavailable, OutcomeUnknown)), repr(caught.value)
    with open_db(server_db.path) as db:
        db.jobs.add(Job(command="x"))
        assert db.jobs.count() - before in ({1} if isinstance(caught.value, Unavailable) else {1, 2})


def test_a_client_outlives_a_stop_and_a_start(server_db: StoppedDB) -> None:
    control.start(server_db.directory)
    with open_db(server_db.path) as db:
        first = db.jobs.add(Job(command="x"))[0]
        control.stop(server_db.directory)
        control.start(server_db.directory)
        assert db.jobs.add(Job(command="x"))[0] == first + 1


def test_another_program_at_a_dead_servers_port_learns_nothing(server_db: StoppedDB, backend: Backend) -> None:
    """Any program may listen at the port once it is free; no secret is sent before the server has proven itself."""
    published = control.start(server_db.directory).address
    with open_db(server_db.path) as db:
        db.jobs.remove()
        db.jobs.add(Job(command="x"))
    kill_server(server_db.directory)
    listening = wait_until(lambda: _listen(published), "the port's release")
    assert listening is not None
    with _Listener(listening) as listener:
        began = time.monotonic()
        done = balsam("--db", server_db.path, "ls")
        lasted = time.monotonic() - began
        with pytest.raises(BalsamError) if done.code else contextlib.nullcontext(), open_db(server_db.path) as db:
            db.run(calls.CountJobs(), timeout=3)
    if done.code:
        assert done.code == UNAVAILABLE, done
        assert done.error
    else:
        assert backend.identity.server is ServerPolicy.OPTIONAL, "who has answered?"
        assert not backend.served_only
    assert lasted < COMMAND_SECONDS, f"the error came after {lasted:.0f} s"
    received = bytes(listener.received)
    leaked = [name for name, secret in _secrets(server_db) if secret in received]
    assert not leaked, f"another program was sent what is in {leaked}"
    control.start(server_db.directory)
    with open_db(server_db.path) as db:
        assert db.jobs.count() == 1


class _Listener:
    """Accepts every connection, sends garbage, and keeps what it receives."""

    def __init__(self, listening: socket.socket) -> None:
        self.received = bytearray()
        self._listening = listening
        self._selector = selectors.DefaultSelector()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        self._listening.setblocking(False)
        self._selector.register(self._listening, selectors.EVENT_READ)
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listening:
                    peer, _address = self._listening.accept()
                    self._selector.register(peer, selectors.EVENT_READ)
                    with contextlib.suppress(OSError):
                        peer.sendall(GARBAGE)
                else:
                    self._receive(key.fileobj)  # type: ignore[arg-type]

    def _receive(self, peer: socket.socket) -> None:
        try:
            data = peer.recv(65536)
        except OSError:
            data = b""
        self.received += data
        if not data:
            self._selector.unregister(peer)
            peer.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


def _secrets(stopped_db: StoppedDB) -> list[tuple[str, bytes]]:
    """Return what ``keys/`` holds: whole files, and their words that are long enough to be secrets."""
    found = []
    for file in stopped_db.directory.keys.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            words = {content, content.strip(), *re.findall(rb"[^\s\"'=:]{16,}", content)}
            found += [(file.name, word) for word in words if word]
    return found


def _tell(published: Address, read: Callable[[psutil.Process], _T]) -> list[_T]:
    """What *read* says of the server's process and of each below it; one that ends meanwhile has nothing to tell."""
    server = psutil.Process(published.pid)
    told = [read(server)]
    for process in server.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one, too
            told.append(read(process))
    return told


def _wait_for_another(stopped_db: StoppedDB, before: Address) -> Address:
    return wait_until(
        lambda: (a := address.read(stopped_db.directory)) is not None and a.generation > before.generation and a,  # type: ignore[return-value]
        "a new server",
        seconds=60,
    )


def _listen(old: Address) -> socket.socket | None:
    try:
        return socket.create_server((old.host, old.port))
    except OSError:
        return None


def _written_while(stopped_db: StoppedDB, harm: Callable[[], None]) -> list[list[str]]:
    """Let four programs write while the server is harmed and afterwards; return the names acknowledged to each."""
    with running(("write-on", stopped_db.path, f"w{number}") for number in range(4)) as writers:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline(), writer.communicate()[1]
        harm()
        time_of_harm = _count(stopped_db)
        wait_until(lambda: _count(stopped_db) >= time_of_harm + 20, "writes after the restart")
        return [out.split() for out in outputs(writers)]


def _count(stopped_db: StoppedDB) -> int:
    with open_db(stopped_db.path) as db:
        return db.jobs.count()


def _assert_exact(stopped_db: StoppedDB, acknowledged: list[list[str]]) -> None:
    with open_db(stopped_db.path) as db:
        stored = [name for (name,) in db.jobs.rows("name")]
    assert len(stored) == len(set(stored)), "a write took effect twice"
    lost = {name for names in acknowledged for name in names} - set(stored)
    assert not lost, f"acknowledged, but lost: {sorted(lost)[:5]}"
