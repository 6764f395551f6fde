"""Peers that flood, stall or stuff the server: the others are served, and it stays small."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import msgspec
import psutil
import pytest
import zmq
from amounts import at_most
from curve_peers import Peer, call, status
from exact import check, read_journal, rows_by_api, writers
from raw_peers import SilentPeers, fuzz, greeting, huge_frame
from resources import is_alive, usage
from served_db import ServedDB

from balsam_core import Job, open_db
from balsam_core.model.calls import CountJobs, GetRows, Order
from balsam_core.proxy.protocol import LARGEST_REQUEST, StatusRequest
from balsam_core.testing.tools import wait_until

MB = 1024 * 1024


def where(served):
    return served.address.host, served.address.port


def messages_dropped(served):
    """How many messages reached the application and were no requests; known when the server has stopped."""
    log = "".join(file.read_text() for file in served.dir.log.glob("server_*"))
    return sum(int(part.split()[-1]) for part in log.split(" messages dropped")[:-1])


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    """A server that several tests share; none of them may end it."""
    db = ServedDB(tmp_path_factory.mktemp("hostile") / "db")
    db.start()
    before = db.address
    yield db
    assert db.address == before
    db.stop()
    assert messages_dropped(db) == 0
    db.close()


@contextmanager
def served_meanwhile(served, tmp_path, number=2, name="w"):
    """Others who write while the body runs; afterwards all must be exact."""
    report = []
    with writers(served.path, number, tmp_path, name=name, pause=0.002) as clients:
        clients.begin()
        try:
            yield report
        finally:
            clients.stop()
            clients.finish()
        ours = [row for row in rows_by_api(served.path) if row.name.startswith(name)]
        report.append(check(clients.journals, ours))
        report[0].assert_exact()
        assert not report[0].errors


def test_garbage_never_reaches_the_server_s_program(lasting, tmp_path, amount, verdict):
    """Garbage is sent to the port: the server's program never sees it, memory and descriptors stay (T20)."""
    at = where(lasting)
    before = usage(lasting.server)
    answered = status(lasting.dir, at).calls
    with served_meanwhile(lasting, tmp_path, name="garbage") as report:
        done = fuzz(at, amount(4_000, 100_000), seed=20)
    wait_until(lambda: usage(lasting.server).fds <= before.fds + 1, "all descriptors closed", seconds=at_most(5))
    after = usage(lasting.server)
    others = report[0].acked
    assert done.refused == 0
    assert after.rss - before.rss <= 20 * MB
    # The writers' calls, their hellos, our questions, the watchdog's: the garbage was no call.
    assert status(lasting.dir, at).calls - answered <= others + 60 + done.seconds
    assert report[0].longest_stall < at_most(5)
    verdict(
        "T20", "garbage to the port",
        f"{done.opened} connections in {done.seconds:.0f} s, {done.sent / MB:.0f} MB; RSS"
        f" {(after.rss - before.rss) / MB:+.1f} MB, descriptors {after.fds - before.fds:+d}; meanwhile {report[0]}",
    )  # fmt: skip


def test_silent_connections_are_dropped_soon(lasting, amount, verdict):
    """Hundreds connect and say little or nothing: they are dropped in seconds, others answered (T23)."""
    at, number = where(lasting), amount(100, 334)
    base = usage(lasting.server).fds
    with ExitStack() as stack:
        # Nothing at all, half a greeting, a greeting and no handshake.
        crowds = [stack.enter_context(SilentPeers(at, number, said)) for said in (b"", greeting()[:11], greeting())]
        opened = time.monotonic()
        status(lasting.dir, at, 5)
        answer = time.monotonic() - opened
        wait_until(lambda: usage(lasting.server).fds <= base, "all descriptors closed", seconds=at_most(10))
        took = time.monotonic() - opened
        for crowd in crowds:
            assert crowd.wait_until_dropped(5)
            assert max(crowd.lived) < at_most(4)
    assert took <= at_most(3)
    assert answer < at_most(2)
    verdict(
        "T23",
        f"{3 * number} silent connections and half handshakes",
        f"descriptors at the base after {took:.1f} s; another client was answered in {answer * 1e3:.0f} ms",
    )


class Intruder:
    """Carries a real client's connection to the server, with something put in between, or messages without their ends.

    A client of libzmq can't begin a message that it doesn't end, but its encrypted frames may be lost one by one.
    """

    def __init__(self, server):
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._down = self._up = None
        self.dropped = threading.Event()
        self.swallow_ends = False
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_error):
        self._listener.close()
        for end in (self._down, self._up):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def put(self, data):
        self._up.sendall(data)

    def _carry(self):
        self._down, _ = self._listener.accept()
        with self._down, socket.create_connection(self._server) as self._up, self._down.makefile("rb", MB) as source:
            back = threading.Thread(target=self._back, daemon=True)
            back.start()
            with suppress(OSError):
                left = 64  # the greeting, in pieces: each side waits for the other's first
                while left and (piece := self._down.recv(left)):
                    self._up.sendall(piece)
                    left -= len(piece)
                while head := source.read(2):
                    if head[0] & 2:
                        head += source.read(7)
                    body = source.read(int.from_bytes(head[1:]))
                    if not (self.swallow_ends and len(body) < 100):
                        self._up.sendall(head + body)
            back.join(10)

    def _back(self):
        with suppress(OSError):
            while piece := self._up.recv(65536):
                self._down.sendall(piece)
        self.dropped.set()
        for end in (self._up, self._down):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_frame_of_8_gib_ends_its_connection(lasting, verdict):
    """A client with the key announces a frame of 8 GiB: its connection ends, memory stays (T22)."""
    before = usage(lasting.server)
    with Intruder(where(lasting)) as between, Peer(lasting.dir, ("127.0.0.1", between.port)) as peer:
        assert peer.reply(0).code == ""
        began = time.monotonic()
        between.put(huge_frame() + bytes(1000))
        assert between.dropped.wait(5)
        took = time.monotonic() - began
    with Intruder(where(lasting)) as between, Peer(lasting.dir, ("127.0.0.1", between.port)) as peer:
        peer.reply(0)
        peer.send(bytes(LARGEST_REQUEST + 2 * MB))
        assert between.dropped.wait(5)
    wait_until(lambda: usage(lasting.server).fds <= before.fds, "its descriptor closed", seconds=at_most(5))
    grown = usage(lasting.server).rss - before.rss
    assert grown < 64 * MB
    verdict(
        "T22", "frame of 8 GiB on an authenticated connection",
        f"dropped after {took * 1e3:.1f} ms, RSS {grown / MB:+.0f} MB",
    )  # fmt: skip


def test_a_message_without_end(served, tmp_path, amount, verdict):
    """A client sends a message without end: the server is replaced, its other clients lose nothing (T22)."""
    frames, before = amount(576, 1024), served.address
    frame = b"x" * MB
    highest = 0
    with (
        served_meanwhile(served, tmp_path, name="endless") as report,
        Intruder(where(served)) as between,
        Peer(served.dir, ("127.0.0.1", between.port)) as peer,
    ):
        peer.reply(0)
        between.swallow_ends = True
        began = time.monotonic()
        for _ in range(frames):
            peer.socket.send(frame, zmq.SNDMORE, copy=False)
            peer.socket.send(b"")
        while served.address == before and time.monotonic() - began < 20:
            highest = max(highest, usage(before.pid).rss)
            time.sleep(0.01)
        took = time.monotonic() - began
    assert served.address.generation == before.generation + 1, "it has begun anew"
    assert report[0].longest_stall <= at_most(5)
    verdict(
        "T22",
        "message without end by a peer with keys",
        f"{frames} MiB of frames: RSS up to {highest / MB:.0f} MB, another server after {took:.1f} s; "
        f"the others: {report[0]}",
    )


def add_bulky_jobs(served, number, size):
    with open_db(served.path) as db:
        for _ in range(number):
            db.jobs.add([Job(name="bulky", command="true", description="x" * size) for _ in range(50)])


def p99(journals, begin, end):
    """Latency of the writes that were sent in a span of time."""
    steps = [step for journal in journals for step in read_journal(journal).values() if begin <= step.sent < end]
    latencies = sorted(step.ended - step.sent for step in steps if step.ended)
    return latencies[int(0.99 * len(latencies))]


def test_a_client_that_never_reads(served, tmp_path, amount, verdict):
    """A client asks for much and never reads: the server's memory is bounded, its other clients go on (T24)."""
    add_bulky_jobs(served, 4, 10_000)  # so that each answer has 2 MB
    seconds, before = amount(1, 15), usage(served.server)
    address = served.address
    moments = []

    def phase():
        moments.append(time.monotonic())
        wait_until(lambda: time.monotonic() > moments[-1] + seconds, seconds=seconds + 30)
        moments.append(time.monotonic())

    with writers(served.path, 4, tmp_path) as clients:
        clients.begin()
        wait_until(lambda: clients.acked > 50)
        phase()
        with Peer(served.dir, where(served), rcvhwm=1) as peer:
            for number in range(10_000):
                peer.send(call(number, GetRows(fields=["description"])) if number % 20 == 0 else StatusRequest(number))
            phase()  # in which they are worked off
            phase()
            grown = usage(served.server).rss - before.rss
        phase()
        clients.stop()
        clients.finish()
    report = check(clients.journals, [row for row in rows_by_api(served.path) if row.name != "bulky"])
    report.assert_exact()
    assert not report.errors
    assert served.address == address
    assert grown <= 64 * MB
    assert report.longest_stall < at_most(5)
    calm, held, again = (p99(clients.journals, *moments[i : i + 2]) for i in (0, 4, 6))
    assert held <= max(2 * calm, 2 * again, amount(0.2, 0.02))  # less is noise
    verdict(
        "T24",
        "client that never reads its 10^4 answers",
        f"RSS {grown / MB:+.0f} MB; the others' p99 {held * 1e3:.1f} ms against {calm * 1e3:.1f} ms before and"
        f" {again * 1e3:.1f} ms after; while its requests came {p99(clients.journals, *moments[1:4:2]) * 1e3:.0f} ms;"
        f" {report}",
    )


def test_readers_take_turns(served):
    """A client asks for a hundred large reads at once: another client's read doesn't wait for all of them (T24)."""
    add_bulky_jobs(served, 4, 10_000)
    with Peer(served.dir, where(served)) as greedy, Peer(served.dir, where(served)) as modest:
        greedy.reply(0)
        modest.reply(0)
        before = status(served.dir, where(served)).calls
        for number in range(100):
            greedy.send(call(number, GetRows(fields=["description"], limit=2000)))
        wait_until(lambda: status(served.dir, where(served)).calls > before + 4)
        asked = status(served.dir, where(served)).calls
        assert modest.ask(call(1, CountJobs())).code == ""
        meanwhile = status(served.dir, where(served)).calls - asked
    assert meanwhile < 50, "the modest one did not wait for all of the greedy one's reads"


def test_giant_answers_are_refused(served, amount, verdict):
    """Clients ask for answers that are too large: they are refused by name, memory is bounded (T22)."""
    add_bulky_jobs(served, amount(14, 40), 100_000)
    before = served.address
    pages = GetRows(fields=["id", "name"], order=Order("name"), limit=2**31 - 1)
    bulky = GetRows(fields=["description", "name"], order=Order("name"), limit=2**31 - 1)
    tree = 0
    with Peer(served.dir, where(served)) as peer, Peer(served.dir, where(served)) as other:
        peer.reply(0)
        other.reply(0)
        assert peer.ask(call(1, pages)).code == ""
        for number in range(2, 6):
            peer.send(call(number, bulky))
        seen = {}
        while len(seen) < 4:
            tree = max(tree, usage(served.server, tree=True).rss)
            assert other.ask(StatusRequest(1), 5).code == ""
            while (reply := peer.receive(0.01)) is not None:
                seen[reply.number] = reply.code
        assert set(seen.values()) == {"too-large"}
        assert peer.ask(call(9, GetRows(fields=["description"] * 101))).code == "invalid-input"
    assert served.address == before
    main = usage(served.server).rss
    assert main < 512 * MB
    verdict(
        "T22", "answers over 64 MiB",
        f"refused by name; the server's RSS {main / MB:.0f} MB, with its readers up to {tree / MB:.0f} MB",
    )  # fmt: skip


def test_reader_without_memory_refuses_and_lives(served):
    """The server's readers run out of memory: they refuse the call and live (T22)."""
    import resource

    add_bulky_jobs(served, 4, 500_000)
    before = served.address
    readers = psutil.Process(served.server).children()
    assert len(readers) == 2
    for reader in readers:  # as much as it has, and a little more
        limit = int(reader.memory_info().vms) + 40 * MB
        resource.prlimit(reader.pid, resource.RLIMIT_AS, (limit, limit))
    with Peer(served.dir, where(served)) as peer:
        peer.reply(0)
        for number in range(1, 5):
            reply = peer.ask(call(number, GetRows(fields=["description"])))
            assert reply.code == "too-large", msgspec.msgpack.decode(reply.body)
        assert peer.ask(call(9, CountJobs())).code == ""
    assert served.address == before
    assert all(is_alive(reader.pid) for reader in readers)
