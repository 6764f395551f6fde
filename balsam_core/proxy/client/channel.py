"""One connection of a client to a write server, from the greeting on.

ZeroMQ connects, encrypts and reconnects by itself, and reports no failure: what happens must be read from the socket's
monitor. A channel is used for one request at a time; an unusable one is closed, never repaired.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

import msgspec
import zmq

from balsam_core.dbdir.address import endpoint
from balsam_core.errors import BalsamError, error_class
from balsam_core.proxy import protocol
from balsam_core.proxy.keys import client_keys
from balsam_core.proxy.monitor import events
from balsam_core.proxy.protocol import PROTOCOL, Hello, StatusRequest, Welcome, catalogue
from balsam_core.schema import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.proxy.keys import ClientKeys
    from balsam_core.proxy.protocol import Request

FIRST_HELLO_TIMEOUT = 1.0  # seconds without an answer, after which the greeting is sent again; then twice as long
LONGEST_HELLO_TIMEOUT = 4.0
SOCKETS = 8192  # of one process; two for a connection while it is made
HANDSHAKE_TIMEOUT = 5.0  # seconds, after which a connection whose peer says nothing is made anew
HANG_UP_TIME = 1.0  # seconds within which another program hangs up; an overloaded server does so after two
CONNECT_TIMEOUT = 2.0  # seconds
PROBE_POLL = 0.05  # seconds

_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_EVENTS = (
    _FAILED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
)

decode_welcome = msgspec.msgpack.Decoder(Welcome).decode
decode_text = msgspec.msgpack.Decoder(str).decode

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return the context of this process: one that was carried over a fork hangs."""
    pid = os.getpid()
    if pid not in _contexts:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        context.max_sockets = SOCKETS
        # The first thread's is used. The parent process' is kept: ending it here would hang.
        _contexts.setdefault(pid, context)
        if _contexts[pid] is not context:
            context.term()
    return _contexts[pid]


class Channel:
    """A connection to the server that listens at a host and port.

    Attributes:
        refusals: How often nobody listened there, before the greeting.
        failures: How often the handshake failed, before the greeting: another program, or a server with other keys.
        silences: How often the peer said nothing at all until the handshake's time was over: it is frozen or cut off.
        unwelcome: Whether the server refused our key.
        agreed: Whether the peer of this connection has proven by the handshake that it has the server's key.
        welcomed: Whether the server has greeted us.
    """

    def __init__(self, host: str, port: int, keys: ClientKeys) -> None:
        self.refusals = 0
        self.failures = 0
        self.silences = 0
        self.unwelcome = False
        self.agreed = False
        self.welcomed = False
        self._clock_offset = 0.0
        self._last = 0
        self._hello = 0
        self._timeout = -1
        self._connected = False
        self._connected_at = 0.0
        self._trying_since = time.monotonic()
        self._monitor: zmq.Socket[bytes] | None = None
        self._socket = socket = _context().socket(zmq.DEALER)
        try:
            socket.linger = 0
            socket.sndtimeo = 0  # libzmq gives up a peer that breaks the protocol: nothing could be sent then, ever
            socket.ipv6 = ":" in host
            socket.curve_serverkey = keys.server.encode()
            socket.curve_publickey = keys.public.encode()
            socket.curve_secretkey = keys.secret.encode()
            socket.heartbeat_ivl = 5000
            socket.heartbeat_timeout = 15_000
            socket.heartbeat_ttl = 15_000
            socket.handshake_ivl = int(HANDSHAKE_TIMEOUT * 1000)
            socket.reconnect_ivl = 50
            socket.reconnect_ivl_max = 500
            socket.tcp_keepalive = 1
            self._monitor = socket.get_monitor_socket(_EVENTS)
            socket.connect(f"tcp://{endpoint(host, port)}")
        except BaseException:
            self.close()
            raise
        self._hello_timeout = FIRST_HELLO_TIMEOUT
        self._send_hello()

    def _send_hello(self) -> None:
        program = f"{os.path.basename(sys.argv[0])[:60]} pid {os.getpid()}"  # noqa: PTH119  (no pathlib needed)
        try:
            self._hello = self.send(lambda number: Hello(number, PROTOCOL, SCHEMA, catalogue(), program))
        except zmq.Again:  # libzmq has given up a peer that speaks another protocol
            self.failures += 1
        self._hello_again_at = time.monotonic() + self._hello_timeout
        self._hello_timeout = min(2 * self._hello_timeout, LONGEST_HELLO_TIMEOUT)

    def send(self, make: Callable[[int], Request]) -> int:
        """Send a request and return its number; ``make`` gets the number."""
        self._last += 1
        self._socket.send(protocol.encode(make(self._last)))
        return self._last

    def receive(self, number: int, seconds: float) -> protocol.Reply | None:
        """Return the reply to a request; None where it doesn't come within the time.

        Answers to earlier requests, which were given up, are dropped.
        """
        until = time.monotonic() + seconds
        timeout = int(seconds * 1000)
        if timeout != self._timeout:
            self._socket.rcvtimeo = self._timeout = timeout  # cheaper than to poll, and mostly the same
        while True:
            try:
                reply = protocol.decode_reply(self._socket.recv())
            except zmq.Again:
                return None
            if reply.number == number:
                return reply
            if time.monotonic() > until:
                return None

    def greet(self, seconds: float) -> bool:
        """Wait for the greeting, at most so long; says whether it has come.

        Raises:
            SchemaMismatch: The server is another version of Balsam.
        """
        if self.welcomed:
            return True
        reply = self.receive(self._hello, seconds)
        arrived = time.monotonic()
        self._note_events()
        if reply is None:
            if arrived > self._hello_again_at:  # lost when ZeroMQ reconnected
                self._send_hello()
            return False
        if reply.code:
            raise error_class(reply.code)(decode_text(reply.body))
        # Read before it was sent here, so the offset is never too large, and a call never runs after its deadline.
        self._clock_offset = decode_welcome(reply.body).clock - arrived
        self.welcomed = True
        self._close_monitor()
        return True

    @property
    def stuck(self) -> bool:
        """Whether packets vanish on the way: the system repeats an attempt to connect less and less often."""
        return not self._connected and time.monotonic() - self._trying_since > CONNECT_TIMEOUT

    def server_time(self, moment: float) -> float:
        """Return a moment of our monotonic clock by the server's clock."""
        return moment + self._clock_offset

    def _note_events(self) -> None:
        if self._monitor is None:
            return
        for event, _ in events(self._monitor):
            if event == zmq.EVENT_CONNECTED:
                self._connected, self._connected_at, self.agreed = True, time.monotonic(), False
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.agreed = True
                self.refusals = self.failures = self.silences = 0
            elif event == zmq.EVENT_CONNECT_RETRIED:
                self.refusals += not self._connected
                self._connected, self._trying_since = False, time.monotonic()
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self.unwelcome = True
            elif event == zmq.EVENT_DISCONNECTED and self.agreed:
                self.agreed = False
            else:
                # A peer that doesn't speak ZMTP causes no other event, and libzmq may give it up without one. It never
                # tells why: another program hangs up at once, a frozen server says nothing.
                silent = time.monotonic() - self._connected_at > HANG_UP_TIME
                self.silences += silent
                self.failures += not silent

    def _close_monitor(self) -> None:
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
            self._monitor = None

    def close(self) -> None:
        """Close the connection at once."""
        if not self._socket.closed:
            self._close_monitor()
            self._socket.close()


def answers(db: DBDir, host: str, port: int, seconds: float) -> bool:
    """Say whether the server there answers within the time.

    Over a new connection, since new clients must be able to connect: the readiness probe of the watchdog.
    """
    until = time.monotonic() + seconds
    try:
        with contextlib.closing(Channel(host, port, client_keys(db))) as channel:
            while not channel.greet(PROBE_POLL):
                if time.monotonic() > until:
                    return False
            number = channel.send(StatusRequest)
            return channel.receive(number, max(PROBE_POLL, until - time.monotonic())) is not None
    except (BalsamError, zmq.ZMQError):
        return False  # a server on its way up or down
