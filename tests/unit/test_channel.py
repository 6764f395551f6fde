"""The client's end of a connection to the write server, and who may be at the other one."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
import zmq

from balsam_core.proxy.client import channel as channels
from balsam_core.proxy.client.channel import Channel
from balsam_core.proxy.keys import ClientKeys
from balsam_core.testing.tools import wait_until


def keys(server=None):
    public, secret = zmq.curve_keypair()
    server = server or zmq.curve_keypair()[0]
    return ClientKeys(server=server.decode(), public=public.decode(), secret=secret.decode())


@pytest.mark.parametrize("word", [b"\x00\x00\x00\x00 hello\r\n" * 50, b"HTTP/1.1 400 Bad Request\r\n\r\n" * 5])
def test_a_stranger_is_known_by_its_hanging_up(word, monkeypatch):
    """ZeroMQ tells of no failed handshake with a peer that speaks another protocol, and may keep what it can't send."""
    monkeypatch.setattr(channels, "FIRST_HELLO_TIMEOUT", 60.0)  # the second greeting couldn't be sent, mostly
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)

        def talk():
            peer, _ = listening.accept()
            with peer, contextlib.suppress(OSError):
                peer.settimeout(10)
                peer.sendall(word)
                while peer.recv(1000):
                    pass

        talking = threading.Thread(target=talk)
        talking.start()
        began = time.monotonic()
        host, port = listening.getsockname()
        channel = Channel(host, port, keys())
        try:
            while not channel.failures and time.monotonic() - began < 10:
                assert not channel.greet(0.05)
            assert channel.failures
        finally:
            channel.close()
            talking.join()


def test_who_has_proven_its_key_is_no_stranger_whatever_was_before():
    """A server that was started again at its port may greet late."""
    public, secret = zmq.curve_keypair()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        channel = Channel(host, port, keys(public))
        listening.settimeout(10)
        peer, _ = listening.accept()
        peer.close()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server, contextlib.closing(channel):
        wait_until(lambda: not channel.greet(0.05) and channel.failures, "the first one's end", seconds=10)
        server.curve_server, server.curve_secretkey, server.linger = True, secret, 0
        server.bind(f"tcp://{host}:{port}")
        wait_until(lambda: not channel.greet(0.05) and channel.agreed, "the second one's handshake", seconds=10)
        assert not channel.failures
        assert not channel.refusals
        server.close()
        wait_until(lambda: not channel.greet(0.05) and channel.refusals, "the end of that one, too", seconds=10)
        assert not channel.agreed
