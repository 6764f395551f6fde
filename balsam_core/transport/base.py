"""``Transport``: what runs calls on a database, wherever they run.

A transport knows nothing of what an operation does. It owes the caller three things: a call passes through the codec,
a write takes effect exactly once however often the transport sends it, and every fault is one of
:mod:`balsam_core.errors`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from datetime import datetime  # noqa: TC003  (msgspec reads the annotation)
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from balsam_core.errors import Busy, OutcomeUnknown, Unavailable
from balsam_core.model.calls import WINDOW, RequestId
from balsam_core.model.codec import decode_result, encode_call
from balsam_core.system.shortages import shortage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.model.calls import Call

R = TypeVar("R")

DEFAULT_TIMEOUT = 120.0  # seconds for one call


class TryAgainError(Exception):
    """An attempt came to nothing; the next one may go another way. Never leaves a transport."""


class ServerStatus(NamedTuple):
    """What the server behind a transport says of itself.

    Attributes:
        since: When it started, UTC.
        clients: Connections that it has now.
        calls: Calls that it has answered.
        epoch: Its number among the servers of this database.
    """

    since: datetime
    clients: int
    calls: int
    epoch: int


class Transport(ABC):
    """Runs calls on one database."""

    @abstractmethod
    def run(self, call: Call[R], *, timeout: float | None = None) -> R:
        """Run a call and return its answer.

        Args:
            call: What to do.
            timeout: Seconds until the caller wants an answer or an error; None for the transport's default.

        Raises:
            BalsamError: What the operation says, or why it can't be reached; see :mod:`balsam_core.errors`.
        """

    def server_status(self) -> ServerStatus | None:
        """Return what the server in between says of itself; None where there is none, or it can't say."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release connections; later calls raise Unavailable. Closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ClientSession:
    """Numbers the requests of one client. Threads may share it."""

    def __init__(self) -> None:
        self.client = os.urandom(16).hex()
        self._last = 0
        self._unanswered: set[int] = set()
        self._changed = threading.Condition()
        self._reads = count(1)

    def next_read(self) -> int:
        """Return the number of a new read."""
        return next(self._reads)

    @contextlib.contextmanager
    def new_request_id(self, deadline: float = float("inf")) -> Iterator[RequestId]:
        """Give the id of a new write. At the end of the block the write is answered and will not be sent again.

        Waits while a write of another thread is unanswered and :data:`WINDOW` newer ones were made.

        Args:
            deadline: How long to wait, by the monotonic clock.

        Raises:
            Busy: The deadline has passed.
        """
        with self._changed:
            while self._unanswered and self._last - min(self._unanswered) >= WINDOW - 1:
                if not self._changed.wait(min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)):
                    raise Busy(f"{WINDOW} writes of this program wait for answers; nothing was changed")
            self._last += 1
            self._unanswered.add(self._last)
            request_id = RequestId(self.client, self._last, min(self._unanswered) - 1)
        try:
            yield request_id
        finally:
            with self._changed:
                self._unanswered.discard(request_id.seq)
                self._changed.notify_all()


class EncodedTransport(Transport):
    """Runs calls as bytes, each write under a request id; a subclass says how in :meth:`perform`.

    Args:
        session: Numbers the requests; transports share it of which one may finish what another began.
    """

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self._pid = os.getpid()
        self._closed = False

    def run(self, call: Call[R], *, timeout: float | None = None) -> R:
        """Run a call; see :meth:`Transport.run`."""
        kind = type(call)
        deadline = time.monotonic() + (DEFAULT_TIMEOUT if timeout is None else timeout)
        data = encode_call(call)
        try:
            if not call.writes:
                return decode_result(kind, self.perform(kind, data, None, deadline))
            with self._session.new_request_id(deadline) as request_id:
                return decode_result(kind, self.perform(kind, data, request_id, deadline))
        except (OSError, ImportError, MemoryError) as err:  # modules are also imported when they are first needed
            lack = shortage(err)
            if lack is None:
                raise
            if not call.writes:
                raise lack from err
            raise OutcomeUnknown(f"{lack}; the write may or may not have been applied") from err

    def check_open(self) -> None:
        """Raise Unavailable where this transport is closed, or was carried over a fork."""
        if self._closed or os.getpid() != self._pid:
            why = "is closed" if self._closed else "was opened by another process; open it again after a fork"
            raise Unavailable(f"the database connection {why}")

    @abstractmethod
    def perform(self, kind: type[Call[R]], data: bytes, request_id: RequestId | None, deadline: float) -> bytes:
        """Run an encoded call and return the encoded answer. A write may have been sent before.

        Args:
            kind: The call's class.
            data: The encoded call.
            request_id: Identity of a write, None for a read.
            deadline: Until when an attempt may begin, by the monotonic clock.
        """
