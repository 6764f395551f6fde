"""The faulty link, between a ZeroMQ client and server with and without encryption, and between plain sockets."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager, suppress

import pytest
import zmq
from tcp_faults import FaultyLink

from balsam_core.testing.tools import wait_until

SECONDS = 10
SHORT = 150  # milliseconds in which an answer would have come


class Pair:
    """A client and a server that know each other through the link; both ends are in this thread."""

    def __init__(self, link, server, client):
        self.link, self.server, self.client = link, server, client

    def ask(self, text, *, wait=SECONDS * 1000):
        """Send a request; returns the answer, None if the request or the answer is lost."""
        self.client.send(text)
        if not self.server.poll(wait):
            return None
        self.answer()
        return self.client.recv() if self.client.poll(wait) else None

    def answer(self):
        peer, request = self.server.recv_multipart()
        self.server.send_multipart([peer, b"the answer to " + request])


@pytest.fixture(params=["plain", "encrypted"])
def pair(request):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server, context.socket(zmq.DEALER) as client:
        for one in (server, client):
            one.linger = 0
            one.setsockopt(zmq.HEARTBEAT_IVL, 50)
            one.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60_000)
        client.setsockopt(zmq.RECONNECT_IVL, 20)
        if request.param == "encrypted":
            public, server.curve_secretkey = zmq.curve_keypair()
            server.curve_server = True
            client.curve_serverkey = public
            client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
        port = server.bind_to_random_port("tcp://127.0.0.1")
        with FaultyLink(("127.0.0.1", port)) as link:
            client.connect(f"tcp://127.0.0.1:{link.port}")
            pair = Pair(link, server, client)
            assert pair.ask(b"are you there") == b"the answer to are you there"
            yield pair


def test_answers_are_swallowed_by_number_and_the_connection_lives(pair):
    pair.link.swallow_replies(2)
    assert pair.ask(b"1st question", wait=SHORT) is None
    assert pair.ask(b"2nd question", wait=SHORT) is None
    assert pair.ask(b"3rd question") == b"the answer to 3rd question"
    assert pair.link.to_clients.swallowed == 2
    assert pair.link.to_server.passed == 4
    assert pair.link.connections == 1


def test_requests_are_swallowed(pair):
    pair.link.swallow_requests()
    assert pair.ask(b"1st question", wait=SHORT) is None
    assert pair.ask(b"2nd question") == b"the answer to 2nd question"
    assert pair.link.to_server.swallowed == 1
    assert pair.link.connections == 1


def test_everything_is_lost_until_it_heals(pair):
    pair.link.blackhole()
    assert pair.ask(b"1st question", wait=SHORT) is None
    pair.link.heal()
    assert pair.ask(b"2nd question") == b"the answer to 2nd question"
    assert pair.link.connections == 1


def test_answers_are_lost_while_requests_arrive(pair):
    pair.link.lose_replies()
    pair.client.send(b"1st question")
    assert pair.server.poll(SECONDS * 1000)
    pair.answer()
    assert not pair.client.poll(SHORT)
    pair.link.heal()
    assert pair.ask(b"2nd question") == b"the answer to 2nd question"


def test_what_was_held_arrives_later(pair):
    pair.link.hold()
    pair.client.send(b"question")
    assert not pair.server.poll(SHORT)
    pair.link.heal()
    assert pair.server.poll(SECONDS * 1000)
    pair.answer()
    assert pair.client.recv() == b"the answer to question"


def test_delay(pair):
    pair.link.delay(0.2)
    start = time.monotonic()
    assert pair.ask(b"question") == b"the answer to question"
    assert 0.4 <= time.monotonic() - start < SECONDS


def test_client_connects_again_after_a_reset(pair):
    pair.link.reset()
    assert pair.ask(b"question") == b"the answer to question"


def test_nobody_gets_in_until_it_heals(pair):
    pair.link.refuse()
    pair.client.send(b"question")
    assert not pair.server.poll(SHORT)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", pair.link.port))
    pair.link.heal()
    assert pair.server.poll(SECONDS * 1000)


@contextmanager
def plain_connection():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        FaultyLink(listener.getsockname()) as link,
        socket.create_connection(("127.0.0.1", link.port), timeout=SECONDS) as client,
    ):
        server, _ = listener.accept()
        with server:
            server.settimeout(SECONDS)
            yield link, client, server


def test_other_protocols_pass():
    with plain_connection() as (_link, client, server):
        client.sendall(b"hello")
        assert server.recv(100) == b"hello"
        server.sendall(b"world" * 100_000)
        received = b""
        while len(received) < 500_000:
            received += client.recv(65536)
        assert received == b"world" * 100_000


def test_the_end_of_one_side_is_the_end_of_the_other():
    with plain_connection() as (link, client, server):
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert server.recv(100) == b"last words"
        assert server.recv(100) == b""
        wait_until(lambda: link.connections == 0)


def test_reset_is_felt_by_both():
    with plain_connection() as (link, client, server):
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        link.reset()
        for side in (client, server):
            with pytest.raises(ConnectionResetError):
                side.recv(1)


def test_unreachable_server_ends_the_connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()
    with FaultyLink(nobody) as link, socket.create_connection(("127.0.0.1", link.port), timeout=SECONDS) as client:
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
        wait_until(lambda: link.connections == 0)
