"""Hostile peers for a ZeroMQ port, by plain sockets: garbage, broken handshakes, huge frames, silence.

``fuzz`` opens many connections and says what became of them; ``SilentPeers`` holds some open and tells when the server
drops them. What the server made of it (messages that reached the application, memory, descriptors) must be asked of the
server: see ``resources.py``.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import random
import resource
import selectors
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

Address = tuple[str, int]

HUGE = 8 * 1024**3  # bytes that a frame's header promises
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST, so that no port stays in TIME_WAIT


def greeting(mechanism: str = "CURVE", *, version: tuple[int, int] = (3, 1), as_server: bool = False) -> bytes:
    """Return a complete ZMTP greeting, 64 bytes."""
    signature = b"\xff" + bytes(8) + b"\x7f"
    return signature + bytes(version) + mechanism.encode().ljust(20, b"\0") + bytes([as_server]) + bytes(31)


def command(name: str, body: bytes) -> bytes:
    """Return a ZMTP command frame."""
    content = bytes([len(name)]) + name.encode() + body
    if len(content) < 256:
        return b"\x04" + bytes([len(content)]) + content
    return b"\x06" + len(content).to_bytes(8) + content


def huge_frame(size: int = HUGE) -> bytes:
    """Return the header of a frame that never comes."""
    return b"\x02" + size.to_bytes(8)


def _random(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([1, 9, 10, 64, 500, 4096, 65536]))


def _garbage_after(mechanism: str) -> Callable[[random.Random], bytes]:
    return lambda chance: greeting(mechanism) + _random(chance)


def _false_hello(chance: random.Random) -> bytes:
    hello = bytes([1, 0]) + bytes(72) + chance.randbytes(32 + 8 + 80)
    return greeting() + command("HELLO", hello) + command("INITIATE", chance.randbytes(chance.randrange(300)))


def _half_handshake(chance: random.Random) -> bytes:
    whole = _false_hello(chance)
    return whole[: chance.randrange(len(whole))]


def _old(chance: random.Random) -> bytes:
    """Return what a peer of ZMTP 1 or 2 says, which has no mechanism at all, with a message."""
    message = b"\x00\x05hello"
    return chance.choice(
        [
            b"\x01\x00" + b"\x06\x00hello",  # ZMTP 1: an anonymous identity, a frame
            b"\xff" + (1).to_bytes(8) + b"\x7f\x01\x05" + b"\x00\x00" + message,  # ZMTP 2: a DEALER
            greeting("NULL", version=(2, 0)) + message,
        ]
    )


def _null_client(chance: random.Random) -> bytes:
    """Return a whole handshake without security, and messages: what a server without CURVE would deliver."""
    ready = command("READY", b"\x0bSocket-Type" + (6).to_bytes(4) + b"DEALER")
    return greeting("NULL") + ready + b"".join(b"\x00\x05hello" for _ in range(chance.randrange(1, 20)))


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "random": _random,
    "garbage after NULL": _garbage_after("NULL"),
    "garbage after CURVE": _garbage_after("CURVE"),
    "garbage after PLAIN": _garbage_after("PLAIN"),
    "false hello": _false_hello,
    "half a handshake": _half_handshake,
    "huge frame": lambda _chance: huge_frame(),
    "huge frame after NULL": lambda _chance: greeting("NULL") + huge_frame(),
    "huge frame after CURVE": lambda _chance: greeting("CURVE") + huge_frame(),
    "old version": _old,
    "client without security": _null_client,
    "silence": lambda _chance: b"",
    "another protocol": lambda _chance: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
"""What a peer says, by name."""


@dataclass
class Fuzzed:
    """What became of the connections.

    Attributes:
        opened: Connections that the server's system accepted.
        refused: Attempts that failed.
        dropped: Connections that the server closed first.
        answered: Connections on which it said something.
        sent: Bytes.
        kinds: Connections of each kind.
        seconds: How long all took.
    """

    opened: int = 0
    refused: int = 0
    dropped: int = 0
    answered: int = 0
    sent: int = 0
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: float = 0.0


def fuzz(
    address: Address, connections: int, *, seed: int, parallel: int = 64, kinds: dict[str, Callable] = KINDS
) -> Fuzzed:
    """Open connections one after the other, say something hostile on each, and break it off a while later.

    Args:
        address: Host and port.
        connections: How many.
        seed: For kinds and contents.
        parallel: How many stay open at a time; the oldest is broken off.
        kinds: What peers say.
    """
    chance = random.Random(seed)
    names = list(kinds)
    done = Fuzzed()
    live: collections.deque[socket.socket] = collections.deque()
    start = time.monotonic()
    for _ in range(connections):
        name = chance.choice(names)
        said = kinds[name](chance)
        try:
            peer = socket.create_connection(address, timeout=10)
        except OSError:
            done.refused += 1
            continue
        done.opened += 1
        done.kinds[name] += 1
        peer.setblocking(False)
        with contextlib.suppress(OSError):  # full, or dropped already
            done.sent += peer.send(said)
        live.append(peer)
        if len(live) > parallel:
            _break_off(live.popleft(), done)
    while live:
        _break_off(live.popleft(), done)
    done.seconds = time.monotonic() - start
    return done


def _break_off(peer: socket.socket, done: Fuzzed) -> None:
    with peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        try:
            if received := peer.recv(65536):
                done.answered += 1
                received = peer.recv(65536)
            done.dropped += not received
        except BlockingIOError:
            pass
        except OSError as err:
            if err.errno not in {errno.ECONNRESET, errno.EPIPE}:
                raise
            done.dropped += 1


class SilentPeers:
    """Connections that say ``said`` and then nothing; use it as a context manager.

    Args:
        address: Host and port.
        count: How many.
        said: e.g. ``greeting()``, or nothing at all.
    """

    def __init__(self, address: Address, count: int, said: bytes = b"") -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard == resource.RLIM_INFINITY or hard >= count + 200:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 200), hard))
        self.lived: list[float] = []
        """How many seconds each of the dropped ones lived."""
        self._opened: dict[socket.socket, float] = {}
        self._selector = selectors.DefaultSelector()
        self._address, self._count, self._said = address, count, said

    def __enter__(self) -> Self:
        for _ in range(self._count):
            peer = socket.create_connection(self._address, timeout=10)
            peer.sendall(self._said)
            peer.setblocking(False)
            self._opened[peer] = time.monotonic()
            self._selector.register(peer, selectors.EVENT_READ)
        return self

    def __exit__(self, *_error: object) -> None:
        self._selector.close()
        for peer in self._opened:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            peer.close()

    @property
    def held(self) -> int:
        """How many are still open, as far as is known."""
        return len(self._opened)

    def wait_until_dropped(self, seconds: float, left: int = 0) -> bool:
        """Wait until the server has dropped all but ``left``; False if it didn't in that time."""
        deadline = time.monotonic() + seconds
        while self.held > left and (remaining := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(remaining):
                peer = key.fileobj
                assert isinstance(peer, socket.socket)
                try:
                    ended = not peer.recv(65536)
                except OSError:
                    ended = True
                if ended:
                    self._selector.unregister(peer)
                    self.lived.append(time.monotonic() - self._opened.pop(peer))
                    peer.close()
        return self.held <= left
