"""Peers that hold the right keys and then do as they like: plain ZeroMQ sockets with the keys of ``keys/client.key``.

What a broken or hostile program of the DB's owner could send; a peer without keys is in ``raw_peers.py``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

import msgspec
import zmq

from balsam_core.model.codec import encode_call
from balsam_core.proxy import protocol
from balsam_core.proxy.keys import client_keys
from balsam_core.proxy.protocol import PROTOCOL, CallRequest, Hello, Reply, StatusRequest, catalogue
from balsam_core.schema import SCHEMA
from balsam_core.transport.base import ServerStatus

if TYPE_CHECKING:
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import Call
    from balsam_core.proxy.keys import ClientKeys

__all__ = ["Peer", "call", "status"]

FAR = 1e12  # a deadline that never comes


def call(number: int, what: Call[object], *, client: str = "", seq: int = 0, deadline: float = FAR) -> CallRequest:
    """Return a request that carries a call; a write needs its request id."""
    return CallRequest(number, what.operation(), msgspec.Raw(encode_call(what)), deadline, client, seq, 0)


class Peer:
    """A connection with valid keys, or with those given; use it as a context manager.

    Args:
        db: The DB directory, for its keys.
        address: Host and port.
        context: The ZeroMQ context, where many peers share one; None for a new one.
        keys: Other keys.
        hello: Whether it says hello at once, as a client does.
        rcvhwm: Messages that it takes in without reading them.
    """

    def __init__(
        self,
        db: DBDir,
        address: tuple[str, int],
        *,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        keys: ClientKeys | None = None,
        hello: bool = True,
        rcvhwm: int = 1000,
    ) -> None:
        keys = keys or client_keys(db)
        self._own = context is None
        self.context = zmq.Context() if context is None else context
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.sndhwm = 0
        self.socket.rcvhwm = rcvhwm
        self.socket.curve_serverkey = keys.server.encode()
        self.socket.curve_publickey = keys.public.encode()
        self.socket.curve_secretkey = keys.secret.encode()
        self.socket.connect(f"tcp://{address[0]}:{address[1]}")
        if hello:
            self.send(Hello(0, PROTOCOL, SCHEMA, catalogue(), "a peer of the tests"))

    def send(self, request: protocol.Request | bytes) -> None:
        """Send a request, or any bytes."""
        self.socket.send(request if isinstance(request, bytes) else protocol.encode(request))

    def receive(self, seconds: float = 30.0) -> Reply | None:
        """Return the next reply, None where none comes."""
        if not self.socket.poll(int(seconds * 1000)):
            return None
        return protocol.decode_reply(self.socket.recv())

    def reply(self, number: int, seconds: float = 30.0) -> Reply:
        """Return the reply to a request; others before it are dropped."""
        until = time.monotonic() + seconds
        while (reply := self.receive(max(0.0, until - time.monotonic()))) is not None:
            if reply.number == number:
                return reply
        raise TimeoutError(number)

    def ask(self, request: protocol.Request, seconds: float = 30.0) -> Reply:
        """Send a request and return its reply."""
        self.send(request)
        return self.reply(request.number, seconds)

    def close(self) -> None:
        """Break off."""
        self.socket.close()
        if self._own:
            self.context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def status(db: DBDir, address: tuple[str, int], seconds: float = 30.0) -> ServerStatus:
    """Return what the server says of itself."""
    with Peer(db, address) as peer:
        return msgspec.msgpack.decode(peer.ask(StatusRequest(1), seconds).body, type=ServerStatus)
