"""A request to the write server and its answer, over as many connections and servers as it takes.

A request that isn't answered is sent again, with the same request id, to whichever server is published then, until the
caller's deadline. :class:`Exchange` makes the attempts and knows what they mean for the call;
:class:`ProxyClient` keeps the connections of a program.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import msgspec
import zmq

from balsam_core.dbdir.address import is_gone
from balsam_core.dbdir.publication import RESTART_TIMEOUT, TROUBLE_AFTER
from balsam_core.errors import BackendError, Expired, SchemaMismatch, TooLarge, Unavailable, error_class
from balsam_core.proxy import protocol
from balsam_core.proxy.client.channel import Channel, decode_text
from balsam_core.proxy.keys import client_keys
from balsam_core.proxy.protocol import LARGEST_REQUEST, CallRequest, StatusRequest
from balsam_core.system.files import pasted
from balsam_core.transport.base import TryAgainError
from balsam_core.transport.deadlines import GRACE

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.publication import Publication
    from balsam_core.model.calls import Call, RequestId
    from balsam_core.proxy.protocol import Request
    from balsam_core.transport.base import ClientSession

R = TypeVar("R")

POLL = 0.05  # seconds between two checks of the published address while waiting
REREAD = 1.0  # seconds between two readings of the file, whatever its status says
FIRST_RESEND = 1.0  # seconds without an answer after which a request is sent again, on a new connection
LONGEST_RESEND = 5.0
FOREIGN_TIMEOUT = 3.0  # seconds for which another program may answer at the server's port


class ProxyClient:
    """The connections of one program to the published write server; threads may share it, processes may not.

    Args:
        publication: Where the server is.
        session: Numbers the requests.
    """

    def __init__(self, publication: Publication, session: ClientSession) -> None:
        self.publication = publication
        self._session = session
        self._pid = os.getpid()
        self._closed = False
        self._idle: list[tuple[Address, Channel]] = []
        self._lock = threading.Lock()

    def exchange(self, kind: type[Call[R]], data: bytes, request_id: RequestId | None, deadline: float) -> Exchange:
        """Return what sends an encoded call and waits for its answer; see :meth:`EncodedTransport.perform`.

        Raises:
            TooLarge: It can't be sent.
        """
        operation = kind.operation()
        if len(data) > LARGEST_REQUEST:
            raise TooLarge(f"{operation} is too large to be sent: {len(data)} of {LARGEST_REQUEST} bytes; split it")
        client, seq, acked = request_id or (self._session.client, self._session.next_read(), 0)
        raw = msgspec.Raw(data)

        def request(number: int, until: float) -> CallRequest:
            return CallRequest(number, operation, raw, until, client, seq, acked)

        return Exchange(self, request, deadline, writes=request_id is not None)

    def status_exchange(self, deadline: float) -> Exchange:
        """Return what asks the server for its :class:`ServerStatus`."""
        return Exchange(self, lambda number, _: StatusRequest(number), deadline, writes=False)

    def close(self) -> None:
        """Close all connections; calls of other threads end with an error."""
        if self._closed or os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            for _, channel in self._idle:
                channel.close()
            self._idle.clear()

    # ---- for exchanges

    @property
    def name(self) -> str:
        """The DB directory, for messages."""
        return self.publication.name

    def check(self, address: Address) -> None:
        """Raise Unavailable where a published server can't be used from here."""
        self.publication.check_reachable(address)
        if address.protocol != protocol.NAME:
            raise Unavailable(
                f"{self.name} is served by another kind of server ({address.protocol}): upgrade balsam-core with pip"
            )

    def is_server(self, address: Address) -> bool:
        """Return whether this server is still the published one, and this client open."""
        return not self._closed and self.publication.current() == address

    def take(self, address: Address) -> Channel:
        """Return a free connection to a server."""
        with self._lock:
            while self._idle:
                its_address, channel = self._idle.pop()
                if its_address == address:
                    return channel
                channel.close()
        keys = client_keys(self.publication.db)
        try:
            return Channel(address.host, address.port, keys)
        except zmq.ZMQError as err:  # no such host, no descriptors left
            raise Unavailable(
                f"the server of {self.name} can't be reached at {address.endpoint}: {str(err).lower()}"
            ) from err

    def give_back(self, address: Address, channel: Channel) -> None:
        """Keep a connection for the next call."""
        with self._lock:
            if self._closed:
                channel.close()
            else:
                self._idle.append((address, channel))


class Exchange:
    """One request until its answer.

    Args:
        client: The connections.
        make_request: Makes the message of its number on a connection, and of the deadline by the server's clock.
        deadline: Until when the server may begin with it, by the monotonic clock.
        writes: Whether it changes anything.
    """

    def __init__(
        self, client: ProxyClient, make_request: Callable[[int, float], Request], deadline: float, *, writes: bool
    ) -> None:
        self._client = client
        self._make_request = make_request
        self._deadline = deadline
        self._writes = writes
        self._sent = False
        self._answered = False
        self._began = self._read_at = time.monotonic()
        self._resend_after = FIRST_RESEND
        self._address: Address | None = None
        self._unreachable_since: float | None = None  # since when this address has given nothing but refusals

    @property
    def may_be_applied(self) -> bool:
        """Whether a server may have the write, and none has said what became of it."""
        return self._writes and self._sent and not self._answered

    def attempt(self, address: Address) -> bytes:
        """Send the request to a published server on one connection and return the encoded answer.

        Raises:
            TryAgainError: The connection is unusable, or another server, or none, is published.
            BalsamError: The server's answer; or the server can't be reached and waiting on makes no sense.
        """
        if address != self._address:
            self._address, self._unreachable_since = address, None
        self._client.check(address)
        channel = self._client.take(address)
        sent_before = self._sent
        try:
            reply = self._ask(channel, address)
            if reply.code == Expired.code and time.monotonic() < self._deadline:
                # The clocks were compared when the connection was made; one of them was stopped since.
                raise TryAgainError
        except BaseException:
            channel.close()
            raise
        self._client.give_back(address, channel)
        # A database that refuses statements may not be able to say what became of an earlier sending.
        self._answered = not (sent_before and reply.code in {BackendError.code, SchemaMismatch.code})
        if reply.code:
            raise error_class(reply.code)(decode_text(reply.body))
        return bytes(reply.body)

    def _ask(self, channel: Channel, address: Address) -> protocol.Reply:
        """Send and wait on one connection."""
        try:
            while not channel.greet(self._longest_wait()):
                self._check_time_and_address(address)
                self._check_peer(channel, address)
                if channel.stuck:
                    raise TryAgainError
            self._unreachable_since = None
            until = channel.server_time(self._deadline)
            self._sent = True
            number = channel.send(lambda number: self._make_request(number, until))
            give_up = time.monotonic() + self._resend_after
            while (reply := channel.receive(number, self._longest_wait())) is None:
                self._check_time_and_address(address)
                if time.monotonic() > give_up:
                    self._resend_after = min(2 * self._resend_after, LONGEST_RESEND)
                    raise TryAgainError
        except zmq.Again:  # nothing can be sent on it any more
            raise TryAgainError from None
        except zmq.ZMQError as err:  # closed by another thread
            raise Unavailable(f"the connection to the server was closed ({err})") from err
        return reply

    def _longest_wait(self) -> float:
        return max(0.0, min(POLL, self._deadline + GRACE - time.monotonic()))

    def _check_time_and_address(self, address: Address) -> None:
        """Raise where the time is over, or another server is published."""
        now = time.monotonic()
        if now > self._read_at + REREAD:
            self._read_at = now
            self._client.publication.forget()
            if now > self._began + TROUBLE_AFTER:
                self._client.publication.tell_trouble()
        if now > self._deadline + (GRACE if self._sent else 0):
            took = now - self._began
            raise Unavailable(
                f"the server of {self._client.name} at {address.endpoint} didn't answer in {took:.1f} s"
                f"{self._client.publication.trouble()}"
            )
        if not self._client.is_server(address):
            raise TryAgainError

    def _check_peer(self, channel: Channel, address: Address) -> None:
        """Raise where another program listens there, or none."""
        name, where = self._client.name, address.endpoint
        if channel.unwelcome:
            raise Unavailable(
                f"the server of {name} at {where} doesn't accept the key in keys/client.key: it was started with "
                f"others; restart it with balsam dbserver --stop, then balsam dbserver"
            )
        if channel.agreed:
            self._unreachable_since = None
            return
        # A silent server may be frozen or cut off for a while: it is waited for, unless it is proven dead.
        if not channel.refusals and not channel.failures and not (channel.silences and is_gone(address)):
            return
        path = pasted(self._client.publication.db.path)
        now = time.monotonic()
        self._unreachable_since = now if self._unreachable_since is None else self._unreachable_since
        if channel.failures and not channel.refusals and now - self._unreachable_since > FOREIGN_TIMEOUT:
            raise Unavailable(
                f"what listens at {where} is not the server of {name}: it is another program, or has other keys than "
                f"keys/client.key says; start the server with balsam dbserver --path={path}"
            )
        if now - self._unreachable_since > RESTART_TIMEOUT:
            remedy = self._client.publication.trouble() or f": start it with balsam dbserver --path={path}"
            raise Unavailable(f"the server of {name}, published at {where}, is not there{remedy}")
