"""``ProxyTransport``: runs calls on the write server of a DB directory.

A request that isn't answered is sent again, with the same request id, to whichever server is published then, until the
caller's deadline. The errors say what is known: a call that was never sent, or that the server refused, changed
nothing.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import msgspec
import zmq

from balsam_core.dbdir.address import is_gone
from balsam_core.errors import (
    DBDirError,
    Expired,
    OutcomeUnknown,
    SchemaMismatch,
    TooLarge,
    Unavailable,
    by_code,
)
from balsam_core.proxy import protocol
from balsam_core.proxy.client.channel import Channel, decode_text
from balsam_core.proxy.keys import client_keys
from balsam_core.proxy.protocol import LARGEST_REQUEST, CallRequest, StatusRequest
from balsam_core.transport.native import EncodedTransport, ServerStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.publication import Publication
    from balsam_core.errors import BalsamError
    from balsam_core.model.calls import Call, RequestId
    from balsam_core.proxy.protocol import Request
    from balsam_core.transport.native import ClientSession

__all__ = ["LOCAL_ERRORS", "ProxyTransport", "Sending"]

R = TypeVar("R")

LOOK_EVERY = 0.05  # seconds between looks at the published address while waiting
LOOK_HARD_EVERY = 1.0  # seconds between readings of the file itself
FIRST_RESEND = 1.0  # seconds without an answer after which a request is sent again, on a new connection
LONGEST_RESEND = 5.0
REFUSED_PATIENCE = 8.0  # seconds for the watchdog to start a dead server again and publish it
STRANGER_PATIENCE = 3.0  # seconds for which another program may answer at the server's port
GRACE = 0.5  # seconds after the deadline for the server's refusal to arrive


LOCAL_ERRORS = (Unavailable, DBDirError, SchemaMismatch)
"""Errors that say nothing of a call that was sent before."""


class Sending:
    """How far a call came, over all attempts and ways.

    Attributes:
        sent: Whether a server may have it.
        answered: Whether a server has said what became of it.
    """

    __slots__ = ("answered", "sent")

    def __init__(self) -> None:
        self.sent = False
        self.answered = False

    def judged(self, err: BalsamError, request_id: RequestId | None) -> BalsamError:
        """Return the error, or, where the write may have been applied all the same, one that says so."""
        if request_id is None or not self.sent or self.answered:
            return err
        return OutcomeUnknown(f"{err}; the write was sent before, and may or may not have been applied")


class _StaleChannelError(Exception):
    """The connection must be given up and made anew."""


class ProxyTransport(EncodedTransport):
    """Runs calls on the published write server; threads may share it, processes may not.

    Args:
        publication: Where the server is.
        session: Numbers the writes.
    """

    def __init__(self, publication: Publication, session: ClientSession) -> None:
        super().__init__(session)
        self._publication = publication
        self._idle: list[tuple[Address, Channel]] = []
        self._lock = threading.Lock()

    def perform(self, kind: type[Call[R]], data: bytes, request_id: RequestId | None, deadline: float) -> bytes:
        """Run an encoded call; see :meth:`EncodedTransport.perform`.

        Raises:
            NotPublishedError: No server is published any more.
        """
        sending = Sending()
        try:
            return self.send(kind, data, request_id, deadline, sending)
        except LOCAL_ERRORS as err:
            raise sending.judged(err, request_id) from err

    def send(
        self, kind: type[Call[R]], data: bytes, request_id: RequestId | None, deadline: float, sending: Sending
    ) -> bytes:
        """Run an encoded call, and note in ``sending`` how far it came; its errors are not judged by that yet."""
        if len(data) > LARGEST_REQUEST:
            msg = f"{kind.operation()} is too large to be sent: {len(data)} of {LARGEST_REQUEST} bytes; split it"
            raise TooLarge(msg)
        operation = kind.operation()
        client, seq, acked = request_id or (self._session.client, self._session.next_read(), 0)
        raw = msgspec.Raw(data)

        def request(number: int, until: float) -> CallRequest:
            return CallRequest(number, operation, raw, until, client, seq, acked)

        return _Exchange(self, request, deadline, sending).run()

    def server_status(self) -> ServerStatus | None:
        """Ask the server how it is."""
        deadline = time.monotonic() + 10
        body = _Exchange(self, lambda number, _: StatusRequest(number), deadline, Sending()).run()
        return msgspec.msgpack.decode(body, type=ServerStatus)

    def close(self) -> None:
        """Close all connections; calls of other threads end with an error."""
        if self._closed or os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            for _, channel in self._idle:
                channel.close()
            self._idle.clear()

    # ---- for the exchange

    def published(self) -> Address:
        """Return the published server.

        Raises:
            NotPublishedError: There is none.
            Unavailable: It can't be reached from here, or this transport is closed.
        """
        self.check_open()
        address = self._publication.reachable()
        if address.protocol != protocol.NAME:
            msg = f"{self.name} is served by another kind of server ({address.protocol}): upgrade balsam-core with pip"
            raise Unavailable(msg)
        return address

    def take(self, address: Address) -> Channel:
        """Return a free connection to a server."""
        with self._lock:
            while self._idle:
                its_address, channel = self._idle.pop()
                if its_address == address:
                    return channel
                channel.close()
        keys = client_keys(self._publication.db)
        try:
            return Channel(address.host, address.port, keys)
        except zmq.ZMQError as err:  # a host that is none, no descriptors left
            msg = f"the server of {self.name} can't be reached at {address.endpoint}: {str(err).lower()}"
            raise Unavailable(msg) from err

    def give_back(self, address: Address, channel: Channel) -> None:
        """Keep a connection for the next call."""
        with self._lock:
            if self._closed:
                channel.close()
            else:
                self._idle.append((address, channel))

    @property
    def name(self) -> str:
        """The DB directory, for messages."""
        return self._publication.name

    def unchanged(self, address: Address) -> bool:
        """Say whether this server is still the published one, and this transport open."""
        return not self._closed and self._publication.current() == address

    def look_again(self) -> None:
        """Read the address at the next look, whatever its file's status says."""
        self._publication.forget()


class _Exchange:
    """One request until its answer, over as many connections and servers as it takes."""

    def __init__(
        self,
        transport: ProxyTransport,
        request: Callable[[int, float], Request],
        deadline: float,
        sending: Sending,
    ) -> None:
        self._transport = transport
        self._request = request
        self._began = self._looked = time.monotonic()
        self._deadline = deadline
        self._sending = sending
        self._resend = FIRST_RESEND
        self._address: Address | None = None
        self._vain_since: float | None = None  # since when this address has given nothing but refusals

    def run(self) -> bytes:
        """Return the answer."""
        while True:
            address = self._transport.published()
            if address != self._address:
                self._address, self._vain_since = address, None
            channel = self._transport.take(address)
            try:
                reply = self._on(channel, address)
            except _StaleChannelError:
                channel.close()
                continue
            except BaseException:
                channel.close()
                raise
            if reply.code == Expired.code and time.monotonic() < self._deadline:
                # The clocks were compared when the connection was made; one of them was stopped since.
                channel.close()
                continue
            self._transport.give_back(address, channel)
            self._sending.answered = True
            if reply.code:
                raise by_code(reply.code)(decode_text(reply.body))
            return bytes(reply.body)

    def _on(self, channel: Channel, address: Address) -> protocol.Reply:
        """Send and wait on one connection."""
        try:
            while not channel.greet(self._wait()):
                self._check(address)
                self._judge(channel, address)
                if channel.stuck:
                    raise _StaleChannelError
            self._vain_since = None
            until = channel.server_time(self._deadline)
            self._sending.sent = True
            number = channel.send(lambda number: self._request(number, until))
            give_up = time.monotonic() + self._resend
            while (reply := channel.receive(number, self._wait())) is None:
                self._check(address)
                if time.monotonic() > give_up:
                    self._resend = min(2 * self._resend, LONGEST_RESEND)
                    raise _StaleChannelError
        except zmq.Again:  # nothing can be sent on it any more
            raise _StaleChannelError from None
        except zmq.ZMQError as err:  # closed by another thread
            msg = f"the connection to the server was closed ({err})"
            raise Unavailable(msg) from err
        return reply

    def _wait(self) -> float:
        return max(0.0, min(LOOK_EVERY, self._deadline + GRACE - time.monotonic()))

    def _check(self, address: Address) -> None:
        """Raise where waiting on makes no sense."""
        now = time.monotonic()
        if now > self._looked + LOOK_HARD_EVERY:
            self._looked = now
            self._transport.look_again()
        if not self._transport.unchanged(address):
            raise _StaleChannelError
        if now > self._deadline + (GRACE if self._sending.sent else 0):
            took = now - self._began
            msg = f"the server of {self._transport.name} at {address.endpoint} didn't answer in {took:.1f} s"
            raise Unavailable(msg)

    def _judge(self, channel: Channel, address: Address) -> None:
        """Raise where the server can't be the right one, or isn't there."""
        name, where = self._transport.name, f"{address.endpoint}"
        if channel.unwelcome:
            msg = (
                f"the server of {name} at {where} doesn't accept the key in keys/client.key: it was started with "
                f"others; restart it with balsam dbserver --stop, then balsam dbserver"
            )
            raise Unavailable(msg)
        if channel.agreed:
            self._vain_since = None
            return
        # A silent server may be frozen or cut off for a while: waited for, if it isn't proven dead.
        if not channel.refusals and not channel.failures and not (channel.silences and is_gone(address)):
            return
        now = time.monotonic()
        self._vain_since = now if self._vain_since is None else self._vain_since
        if channel.failures and not channel.refusals and now - self._vain_since > STRANGER_PATIENCE:
            msg = (
                f"what listens at {where} is not the server of {name}: it is another program, or has other keys than "
                f"keys/client.key says; start the server with balsam dbserver --path={name}"
            )
            raise Unavailable(msg)
        if now - self._vain_since > REFUSED_PATIENCE:
            msg = (
                f"the server of {name}, published at {where}, is not there: start it with balsam dbserver --path={name}"
            )
            raise Unavailable(msg)
