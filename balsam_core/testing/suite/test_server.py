"""``balsam_start_server``: a server that starts, answers, comes back by itself, and stops without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

import psutil
import pytest

from balsam_core import open_db
from balsam_core.dbdir import address
from balsam_core.errors import BalsamError, OutcomeUnknown, ServerNotRunning, Unavailable
from balsam_core.model import calls
from balsam_core.model.job import Job
from balsam_core.plugin import is_loopback
from balsam_core.plugin_types import ServerPolicy
from balsam_core.system import processes
from balsam_core.testing.programs import start_program
from balsam_core.testing.tools import balsam, one_line, wait_until
from balsam_core.watchdog import control
from balsam_core.watchdog.lease import LeaseObserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.backends.registry import Backend
    from balsam_core.dbdir.address import Address
    from balsam_core.testing.fixtures import Spare
    from balsam_core.testing.run import Run

UNAVAILABLE = 6  # exit code
INVALID_INPUT = 5
STRANGER_SECONDS = 45  # until a command gives up that a stranger keeps waiting


@pytest.fixture
def served(spare: Spare, backend: Backend) -> Spare:
    if backend.identity.server is ServerPolicy.NONE:
        pytest.skip("this backend has no server")
    return spare


def test_without_its_server_a_command_names_the_one_that_starts_it(spare: Spare, backend: Backend) -> None:
    if backend.identity.server is ServerPolicy.REQUIRED or "served-only" in backend.identity.capabilities:
        done = balsam("--db", spare.path, "ls")
        assert done.returncode == UNAVAILABLE
        assert "balsam dbserver" in one_line(done)
        with pytest.raises(ServerNotRunning, match="balsam dbserver"), open_db(spare.path) as db:
            db.info()
    else:
        done = balsam("--db", spare.path, "ls")
        assert done.returncode == 0, done.stderr


def test_a_backend_without_server_says_so(spare: Spare, backend: Backend) -> None:
    if backend.identity.server is not ServerPolicy.NONE:
        pytest.skip("this backend has a server")
    done = balsam("dbserver", "--path", spare.path)
    assert done.returncode == INVALID_INPUT
    assert backend.identity.title in one_line(done)


def test_a_server_starts_once_answers_and_stops(served: Spare, run: Run) -> None:
    started = [balsam("dbserver", "--path", served.path, "-o", "json") for _ in range(2)]
    assert [done.returncode for done in started] == [0, 0], started[0].stderr
    first, second = (json.loads(done.stdout) for done in started)
    assert (first.pop("already"), second.pop("already")) == (False, True)
    assert first == second
    with open_db(served.path) as db:
        assert db.info().db_id == served.directory.id
    status = json.loads(balsam("dbserver", "--status", "--path", served.path, "-o", "json").stdout)
    assert (status["state"], status["pid"]) == ("running", first["pid"])
    started_at = processes.start_of(first["pid"])
    assert started_at is not None
    stopped = [balsam("dbserver", "--stop", "--path", served.path, "-o", "json") for _ in range(2)]
    assert [json.loads(done.stdout)["result"] for done in stopped] == ["stopped", "none"]
    assert address.read(served.directory) is None
    assert not processes.is_alive(first["pid"], started_at)
    assert not run.left(served.path), "the server left processes"
    with pytest.raises(OSError, match=r".*"):
        socket.create_connection((first["host"], first["port"]), timeout=5).close()


def test_a_server_listens_on_the_published_address_only(served: Spare) -> None:
    published = control.start(served.directory).address
    assert is_loopback(published.host), "unless it is told a host, a server is for this machine alone"
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in _tree(published)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {port for _, port in listening} == {published.port}
    wide = {ip for ip, _ in listening if not is_loopback(ip)}
    assert not wide, f"it listens at {wide}, which {published.host} does not say"


def test_no_secret_is_in_the_address_or_on_a_command_line(served: Spare) -> None:
    published = control.start(served.directory).address
    texts = [served.directory.address_file.read_text(), served.directory.config_file.read_text()]
    server = psutil.Process(published.pid)
    texts += [" ".join(process.cmdline()) for process in [server, *server.children(recursive=True)]]
    for key in served.directory.keys.rglob("*"):
        if key.is_file():
            for line in key.read_bytes().splitlines():
                secret = line.decode(errors="replace").strip()
                if len(secret) >= 16 and not secret.startswith(("-----", "#")):
                    assert not any(secret in text for text in texts), f"a line of {key.name} is there"


def test_a_killed_server_comes_back_and_nothing_is_lost_or_doubled(served: Spare) -> None:
    before = control.start(served.directory).address
    with open_db(served.path) as db:
        db.jobs.remove()
    told = _written_while(served, lambda: _kill(served, before))
    _assert_exact(served, told)


def test_a_server_whose_port_is_taken_comes_back_at_another(served: Spare) -> None:
    before = control.start(served.directory).address
    watchdog = LeaseObserver(served.directory).observe().lease
    assert watchdog is not None
    with open_db(served.path) as db:
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
            assert _wait_for_another(served, before).port != before.port

    told = _written_while(served, take_port)
    _assert_exact(served, told)


def test_nothing_passes_by_a_server_that_hangs(served: Spare) -> None:
    """A deadline is kept, and the files are not written behind the server's back."""
    published = control.start(served.directory).address
    with open_db(served.path) as db:
        before = db.jobs.count()
    os.kill(published.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(BalsamError) as caught, open_db(served.path) as db:
            db.run(calls.AddJobs(jobs=[Job(command="x")]), timeout=1.5)
        lasted = time.monotonic() - began
    finally:
        os.kill(published.pid, signal.SIGCONT)
    assert lasted < 15, f"the deadline was 1.5 s, the error came after {lasted:.0f} s"
    assert isinstance(caught.value, (Unavailable, OutcomeUnknown)), repr(caught.value)
    with open_db(served.path) as db:
        db.jobs.add(Job(command="x"))
        assert db.jobs.count() - before in ({1} if isinstance(caught.value, Unavailable) else {1, 2})


def test_a_client_outlives_a_stop_and_a_start(served: Spare) -> None:
    control.start(served.directory)
    with open_db(served.path) as db:
        first = db.jobs.add(Job(command="x"))[0]
        control.stop(served.directory)
        control.start(served.directory)
        assert db.jobs.add(Job(command="x"))[0] == first + 1


@pytest.mark.parametrize("word", [b"\x00\x00\x00\x00 hello \xff\r\n" * 50], ids=["garbage"])
def test_a_stranger_at_a_dead_servers_port_learns_nothing(served: Spare, backend: Backend, word: bytes) -> None:
    """Whoever finds the published port free may listen there; no secret is sent before the server has proven itself."""
    published = control.start(served.directory).address
    with open_db(served.path) as db:
        db.jobs.remove()
        db.jobs.add(Job(command="x"))
    _kill_with_watchdog(served, published)
    stranger = wait_until(lambda: _listen(published), "the port's release")
    assert stranger is not None
    with _Listener(stranger, word) as listener:
        began = time.monotonic()
        done = balsam("--db", served.path, "ls")
        lasted = time.monotonic() - began
        with pytest.raises(BalsamError) if done.returncode else contextlib.nullcontext(), open_db(served.path) as db:
            db.run(calls.CountJobs(), timeout=3)
    if done.returncode:
        assert done.returncode == UNAVAILABLE, done.stderr
        one_line(done)
    else:
        assert backend.identity.server is ServerPolicy.OPTIONAL, "who has answered?"
        assert "served-only" not in backend.identity.capabilities
    assert lasted < STRANGER_SECONDS, f"the error came after {lasted:.0f} s"
    heard = bytes(listener.heard)
    told = [name for name, secret in _secrets(served) if secret in heard]
    assert not told, f"a stranger was told what is in {told}"
    control.start(served.directory)
    with open_db(served.path) as db:
        assert db.jobs.count() == 1


class _Listener:
    """Somebody who listens, says one thing to all, and keeps what he hears."""

    def __init__(self, listening: socket.socket, word: bytes) -> None:
        self.heard = bytearray()
        self._word = word
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
                        peer.sendall(self._word)
                else:
                    self._hear(key.fileobj)  # type: ignore[arg-type]

    def _hear(self, peer: socket.socket) -> None:
        try:
            some = peer.recv(65536)
        except OSError:
            some = b""
        self.heard += some
        if not some:
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


def _secrets(spare: Spare) -> list[tuple[str, bytes]]:
    """Return what ``keys/`` holds: whole files, and their words that are long enough to be secrets."""
    found = []
    for file in spare.directory.keys.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            words = {content, content.strip(), *re.findall(rb"[^\s\"'=:]{16,}", content)}
            found += [(file.name, word) for word in words if word]
    return found


def _tree(published: Address) -> list[psutil.Process]:
    server = psutil.Process(published.pid)
    return [server, *server.children(recursive=True)]


def _kill_with_watchdog(spare: Spare, published: Address) -> None:
    """Let the watchdog, the server and all its processes end at once, so that the address stays published."""
    lease = LeaseObserver(spare.directory).observe().lease
    assert lease is not None
    processes = [psutil.Process(lease.pid), *_tree(published)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
    gone, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive, (gone, alive)


def _kill(spare: Spare, before: Address) -> None:
    os.kill(before.pid, signal.SIGKILL)
    _wait_for_another(spare, before)


def _wait_for_another(spare: Spare, before: Address) -> Address:
    return wait_until(
        lambda: (a := address.read(spare.directory)) is not None and a.generation > before.generation and a,  # type: ignore[return-value]
        "a new server",
        seconds=60,
    )


def _listen(old: Address) -> socket.socket | None:
    try:
        return socket.create_server((old.host, old.port))
    except OSError:
        return None


def _written_while(spare: Spare, harm: Callable[[], None]) -> list[list[str]]:
    """Let four programs write while the server is harmed; return what each was told, which goes on afterwards."""
    writers = [start_program("write-on", spare.path, f"w{number}") for number in range(4)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdin is not None
            assert writer.stdout.readline() == "ready\n", writer.communicate()[1]
            writer.stdin.write("\n")
            writer.stdin.flush()
            assert writer.stdout.readline(), writer.communicate()[1]
        harm()
        time_of_harm = _count(spare)
        wait_until(lambda: _count(spare) >= time_of_harm + 20, "writes after the restart")
        told = []
        for writer in writers:
            out, error = writer.communicate(timeout=90)
            assert writer.returncode == 0, error
            told.append(out.split())
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    return told


def _count(spare: Spare) -> int:
    with open_db(spare.path) as db:
        return db.jobs.count()


def _assert_exact(spare: Spare, told: list[list[str]]) -> None:
    with open_db(spare.path) as db:
        stored = [name for (name,) in db.jobs.rows("name")]
    assert len(stored) == len(set(stored)), "a write took effect twice"
    acknowledged = {name for names in told for name in names}
    assert acknowledged <= set(stored), f"acknowledged, but lost: {sorted(acknowledged - set(stored))[:5]}"
