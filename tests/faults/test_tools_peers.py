"""Hostile peers reach a server that lets them, and one with encryption drops them; use of resources is measured."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
import zmq
from raw_peers import KINDS, SilentPeers, fuzz, greeting
from resources import is_alive, usage

from balsam_core.testing.tools import wait_until


@contextmanager
def server(*, curve, handshake=30_000):
    """A ROUTER in this process; ZeroMQ's own thread does the work."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.setsockopt(zmq.HANDSHAKE_IVL, handshake)
        router.setsockopt(zmq.MAXMSGSIZE, 1 << 20)
        if curve:
            router.curve_server = True
            _, router.curve_secretkey = zmq.curve_keypair()
        yield router, ("127.0.0.1", router.bind_to_random_port("tcp://127.0.0.1"))


def delivered(router):
    count = 0
    while router.poll(200):
        router.recv_multipart()
        count += 1
    return count


def test_fuzz_reaches_an_open_server():
    with server(curve=False) as (router, address):
        done = fuzz(address, 500, seed=1)
        assert delivered(router) > 50
    assert done.opened == 500
    assert done.refused == 0
    assert set(done.kinds) == set(KINDS)
    assert 0 < done.answered <= 500


def test_fuzz_stops_at_encryption():
    with server(curve=True) as (router, address):
        done = fuzz(address, 500, seed=1)
        assert delivered(router) == 0
    assert done.opened == 500
    assert done.dropped > 100
    assert done.sent > 1_000_000


def test_fuzz_counts_refusals():
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = nobody.getsockname()
    assert fuzz(address, 5, seed=1).refused == 5


@pytest.mark.parametrize("said", [b"", greeting()], ids=["nothing", "greeting"])
def test_silent_peers_are_seen_dropped(said):
    with server(curve=True, handshake=200) as (_, address), SilentPeers(address, 50, said) as peers:
        assert peers.wait_until_dropped(20)
        assert len(peers.lived) == 50
        assert min(peers.lived) > 0.1
        assert peers.held == 0


def test_silent_peers_are_seen_held():
    with server(curve=True) as (_, address), SilentPeers(address, 3) as peers:
        assert not peers.wait_until_dropped(0.1)
        assert peers.held == 3


def test_usage_of_a_tree_of_processes():
    code = """
import subprocess, sys
program = "import sys; data = b'x' * 50_000_000; print(1, flush=True); sys.stdin.read()"
child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.read(1)
print(child.pid, flush=True)
sum(range(10**7))
print("done", flush=True)
sys.stdin.read()
"""
    argv = [sys.executable, "-uc", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        before = usage(process.pid, tree=True)
        assert process.stdout.readline() == "done\n"
        after = usage(process.pid, tree=True)
        assert after.processes == 2
        assert usage(process.pid).processes == 1
        assert 50_000_000 < after.pss <= after.rss
        assert after.fds >= 6
        assert after.load_since(before) > 0
        assert is_alive(child)
    wait_until(lambda: not is_alive(child))
    assert usage(child).processes == 0
    assert usage(os.getpid()).rss > 0
