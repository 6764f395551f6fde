"""The write server's loop: takes requests off the socket, has them run, sends the answers.

One thread. Writes are gathered into batches, reads go to :mod:`balsam_core.proxy.server.readers`. No message of a
client can end the loop: one that is no request is dropped and counted.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import zmq

from balsam_core.dbdir.address import endpoint
from balsam_core.errors import BalsamError, Busy, InvalidInput
from balsam_core.model import calls
from balsam_core.model.codec import decode_result, encode_call
from balsam_core.proxy import protocol
from balsam_core.proxy.monitor import events
from balsam_core.proxy.protocol import LARGEST_REQUEST, OPERATIONS, CallRequest, Hello, Reply, Welcome, check_hello
from balsam_core.proxy.server.answers import Answer, PendingWrite, error_answer
from balsam_core.proxy.server.readers import ReaderLostError
from balsam_core.proxy.server.writer import GROUP_CALLS, FencedError, HeldError
from balsam_core.proxy.server.zap import DOMAIN
from balsam_core.transport.base import ClientSession, ServerStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.proxy.keys import ServerKeys
    from balsam_core.proxy.server.readers import Reader, Readers
    from balsam_core.proxy.server.writer import GroupWriter

logger = logging.getLogger(__name__)

BATCH_BYTES = 4 * 1024 * 1024
LARGE_CALL = 256 * 1024  # bytes; it gets a batch of its own, so that small ones don't wait for it
LONGEST_QUEUE = 50_000  # calls in the queue; more are refused
UNREAD_ANSWERS = 4  # kept for a client that doesn't read them; ours wait for each answer before the next request
PRUNE_EVERY = 600.0  # seconds
PRUNE_AGAIN = 1.0  # seconds, where there is more to forget than one call may
HELD_PAUSE = 0.02  # seconds between attempts to begin while another program holds the database
GATHER_SHARE = 0.25  # of the last commit's duration: how long a batch may wait for clients that were just answered
LONGEST_GATHER = 0.002  # seconds
UNBOUND_FOR = 0.5  # seconds without accepting, when descriptors ran out


class Listener:
    """The server's socket, with its limits, and how many are connected to it.

    Its context has a running :class:`ZapAuthenticator`.

    Raises:
        zmq.ZMQError: It can't listen there.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], host: str, port: int, keys: ServerKeys) -> None:
        self.socket = socket = context.socket(zmq.ROUTER)
        socket.ipv6 = ":" in host
        socket.linger = 1000
        socket.router_mandatory = True
        socket.maxmsgsize = LARGEST_REQUEST + 4096
        socket.sndhwm = UNREAD_ANSWERS
        socket.handshake_ivl = 2000
        socket.backlog = 4096
        socket.tcp_keepalive = 1
        socket.heartbeat_ivl = 15_000
        socket.heartbeat_timeout = 45_000
        socket.curve_server = True
        socket.curve_secretkey = keys.secret.encode()
        socket.zap_domain = DOMAIN
        self.monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED)
        self.peers: set[int] = set()  # descriptors of those that are connected
        self._endpoint = f"tcp://{endpoint(host, port)}"
        self._bind_again_at: float | None = None
        socket.bind(self._endpoint)

    def note_events(self) -> None:
        """Read who came and who went."""
        for event, value in events(self.monitor):
            if event == zmq.EVENT_ACCEPTED:
                self.peers.add(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self.peers.discard(value)
            elif self._bind_again_at is None:
                # Out of descriptors. libzmq would try again without a pause, with all the power of a core.
                logger.warning(
                    "a connection can't be accepted (%d are open): too many for this process's limit of open files; "
                    "no new ones are taken for %g s", len(self.peers), UNBOUND_FOR,
                )  # fmt: skip
                self.socket.unbind(self._endpoint)
                self._bind_again_at = time.monotonic() + UNBOUND_FOR

    def tick(self) -> None:
        """Listen again, where that was given up for a moment."""
        if self._bind_again_at is not None and time.monotonic() >= self._bind_again_at:
            try:
                self.socket.bind(self._endpoint)
            except zmq.ZMQError as err:
                if err.errno != zmq.EADDRINUSE:
                    raise
                self._bind_again_at += UNBOUND_FOR
            else:
                self._bind_again_at = None

    def close(self) -> None:
        """Send what is to be sent, for a second at most, and close."""
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()


class _Queued(msgspec.Struct):
    """A write that waits for its batch, and who wants the answer."""

    identity: bytes
    number: int
    write: PendingWrite


class WriteServer:
    """Serves one database.

    Args:
        listener: The socket.
        writer: The database's only writer.
        readers: The reading processes; None where the writer reads as well.
        is_replaced: Asked before each batch where file locks are unreliable, so that the epoch in the database can't
            fence: says whether another server was published.
        wakeup: A descriptor that ends the wait of :meth:`run_once` when it becomes readable.

    Attributes:
        calls: How many calls it has answered.
        dropped: How many messages were no requests.
    """

    def __init__(
        self,
        listener: Listener,
        writer: GroupWriter,
        readers: Readers | None,
        is_replaced: Callable[[], bool] | None,
        wakeup: int,
    ) -> None:
        self.calls = 0
        self.dropped = 0
        self._listener = listener
        self._socket = listener.socket
        self._writer = writer
        self._readers = readers
        self._is_replaced = is_replaced
        self._writes: deque[_Queued] = deque()
        self._by_request_id: dict[tuple[str, int], _Queued] = {}
        self._since = datetime.now(UTC)
        self._session = ClientSession()
        self._prune_due = time.monotonic() + PRUNE_EVERY
        self._commit_seconds = 0.0
        self._last_batch_size = 0
        self._begin_at = 0.0  # when to try again, while another program holds the database
        self._held_since: float | None = None
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(listener.monitor, zmq.POLLIN)
        self._by_descriptor = {reader.pipe.fileno(): reader for reader in readers.all} if readers else {}
        for descriptor in (wakeup, *self._by_descriptor):
            self._poller.register(descriptor, zmq.POLLIN)

    def run_once(self, seconds: float) -> None:
        """Do what there is to do; wait for that at most so long.

        Raises:
            FencedError: Another server has taken over.
            BatchLostError: The database has failed; end without answering.
            ReaderLostError: A reading process has died; nothing is wrong with the database.
        """
        if self._writes:
            seconds = min(seconds, max(0.0, self._begin_at - time.monotonic()))
        ready = dict(self._poller.poll(int(seconds * 1000)))
        if self._socket in ready:
            self._receive()
        if self._listener.monitor in ready:
            self._listener.note_events()
        if self._readers:
            for descriptor, reader in self._by_descriptor.items():
                if descriptor in ready:
                    self._forward(self._readers, reader)
        if self._writes and time.monotonic() >= self._begin_at:
            self._wait_for_batch()
            self._write_batch()
        self._listener.tick()
        if time.monotonic() > self._prune_due:
            self._prune_due = time.monotonic() + PRUNE_EVERY
            self._prune()

    # ---- receiving

    def _receive(self) -> int:
        """Take what has arrived, up to a batch's worth; returns how many messages came."""
        receive, wait = self._socket.recv_multipart, zmq.NOBLOCK
        for count in range(GROUP_CALLS):
            try:
                frames = receive(wait)
            except zmq.Again:
                return count
            if len(frames) == 2:  # noqa: PLR2004
                self._take_message(frames[0], frames[1])
            else:
                self._drop(frames[0], "not of one frame")
        return GROUP_CALLS

    def _take_message(self, identity: bytes, message: bytes) -> None:
        try:
            request = protocol.decode_request(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            self._drop(identity, str(err))
            return
        if type(request) is CallRequest:
            self._take_call(identity, request)
        elif type(request) is Hello:
            self._reply(identity, request.number, self._answer_hello(request))
        else:
            status = ServerStatus(self._since, len(self._listener.peers), self.calls, self._writer.epoch)
            self._reply(identity, request.number, Answer("", protocol.encode(status)))

    def _answer_hello(self, hello: Hello) -> Answer:
        try:
            check_hello(hello)
        except BalsamError as err:
            logger.warning("refused %s: %s", ascii(hello.program), err)
            return error_answer(err)
        return Answer("", protocol.encode(Welcome(time.monotonic(), self._writer.epoch)))

    def _take_call(self, identity: bytes, request: CallRequest) -> None:
        kind = OPERATIONS.get(request.operation)
        if kind is None:
            self._reply(identity, request.number, error_answer(InvalidInput(f"no operation {request.operation!r}")))
        elif kind.writes:
            if not request.client or not request.seq:
                self._reply(identity, request.number, error_answer(InvalidInput("a write without a request id")))
                return
            request_id = calls.RequestId(request.client, request.seq, min(request.acked, request.seq - 1))
            key = (request_id.client, request_id.seq)
            waiting = self._by_request_id.get(key)
            if waiting is not None:  # sent again while it waits: the newest sender gets the answer
                waiting.identity, waiting.number = identity, request.number
            elif len(self._writes) >= LONGEST_QUEUE:
                # Not answered: a copy of it may have taken effect, and its client sends it again.
                self._drop(identity, "the queue is full")
            else:
                queued = _Queued(
                    identity, request.number, PendingWrite(kind, bytes(request.call), request_id, request.deadline)
                )
                self._by_request_id[key] = queued
                self._writes.append(queued)
        elif self._readers:
            # One that doesn't number its reads can't repeat them.
            key = (request.client, request.seq) if request.client else (identity.hex(), request.number)
            if not self._readers.ask(key, identity, request):
                self._reply(identity, request.number, error_answer(Busy("too many reads of this client are waiting")))
        elif time.monotonic() <= request.deadline:
            self._answer(identity, request.number, self._writer.read(kind, bytes(request.call)))

    def _drop(self, identity: bytes, why: str) -> None:
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # the 1st, 2nd, 4th, 8th ...
            logger.warning("%d messages were no requests; the last, from %s: %s", self.dropped, identity.hex(), why)

    # ---- writing

    def _wait_for_batch(self) -> None:
        """Wait a moment for clients that were just answered together and will write again.

        Without it, the first of them would have a commit of its own, and all others would wait for two.
        """
        until = time.monotonic() + min(self._commit_seconds * GATHER_SHARE, LONGEST_GATHER)
        while len(self._writes) < self._last_batch_size:
            left = until - time.monotonic()
            if left <= 0 or not self._socket.poll(max(1, int(left * 1000))) or not self._receive():
                return

    def _write_batch(self) -> None:
        if self._is_replaced and self._is_replaced():
            raise FencedError
        batch = self._next_batch()
        began = time.monotonic()
        try:
            answers = self._writer.run([queued.write for queued in batch])
        except HeldError:
            self._wait_for_others(batch)
            return
        if self._held_since is not None:
            logger.info("the database is free again after %.1f s", began - self._held_since)
            self._held_since = None
        self._commit_seconds = time.monotonic() - began
        self._last_batch_size = len(batch)
        for queued, answer in zip(batch, answers, strict=True):
            self._answer(queued.identity, queued.number, answer)

    def _wait_for_others(self, batch: list[_Queued]) -> None:
        """Put a batch back: another program holds the database. Meanwhile reads are answered, and requests to stop."""
        now = time.monotonic()
        if self._held_since is None:
            self._held_since = now
            logger.warning("another program holds the database; %d writes wait for it", len(batch))
        self._begin_at = now + HELD_PAUSE
        for queued in reversed(batch):
            if now > queued.write.deadline:
                self._answer(queued.identity, queued.number, self._writer.refuse_late(queued.write))
            else:
                self._writes.appendleft(queued)
                self._by_request_id[queued.write.request_id[:2]] = queued

    def _next_batch(self) -> list[_Queued]:
        batch: list[_Queued] = []
        size = 0
        while self._writes and len(batch) < self._writer.most_calls and size < BATCH_BYTES:
            length = len(self._writes[0].write.data)
            if length > LARGE_CALL and batch:
                break
            queued = self._writes.popleft()
            del self._by_request_id[queued.write.request_id[:2]]
            batch.append(queued)
            size += length
            if length > LARGE_CALL:
                break
        return batch

    def _prune(self) -> None:
        """Forget clients that were not seen for days."""
        with self._session.new_request_id() as request_id:
            write = PendingWrite(calls.Prune, encode_call(calls.Prune()), request_id, time.monotonic() + 60)
            try:
                [answer] = self._writer.run([write])
            except HeldError:
                return
        if not answer.code and decode_result(calls.Prune, answer.body) >= calls.MOST_JOBS:
            self._prune_due = time.monotonic() + PRUNE_AGAIN

    # ---- answering

    def _forward(self, readers: Readers, reader: Reader) -> None:
        """Send on what a reading process has answered."""
        try:
            asked, answer = readers.answer(reader)
        except ReaderLostError as lost:
            if lost.asked is not None:
                # A definite answer, or its client would try it on the next server.
                died = error_answer(BalsamError("the process that ran this read has died; see the server's log"))
                self._answer(lost.asked.identity, lost.asked.request.number, died)
            raise
        self._answer(asked.identity, asked.request.number, answer)

    def _answer(self, identity: bytes, number: int, answer: Answer) -> None:
        """Answer a call, and count it."""
        self.calls += 1
        self._reply(identity, number, answer)

    def _reply(self, identity: bytes, number: int, answer: Answer) -> None:
        message = protocol.encode(Reply(number, answer.code, msgspec.Raw(answer.body)))
        for is_last in (False, True):
            try:
                self._socket.send_multipart((identity, message), zmq.NOBLOCK)
                return
            except zmq.ZMQError as err:
                # It has gone, or reads nothing. If it still wants the answer, it will ask again.
                if err.errno not in {zmq.EHOSTUNREACH, zmq.EAGAIN}:
                    raise
                if is_last or err.errno == zmq.EHOSTUNREACH:
                    return
            # Where quick answers follow each other, libzmq may not have noticed yet that the first have left. It looks
            # when it is asked for its events: https://libzmq.readthedocs.io/en/latest/zmq_getsockopt.html
            self._socket.getsockopt(zmq.EVENTS)
