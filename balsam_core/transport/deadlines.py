"""The deadline of a call, enforced where a driver would wait for ever.

The machine of a frozen server still acknowledges every packet, so neither TCP nor a driver notices anything. Code that
connects asks :func:`seconds_left` for its timeout; :class:`DeadlineEnforcer` shuts down connections whose answer is
late.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

GRACE = 0.5  # seconds beyond the deadline, for an answer or a refusal that is on its way
POLL = 0.25  # seconds between two looks while a call is under way

_deadline: ContextVar[float] = ContextVar("deadline", default=inf)


def seconds_left(longest: float) -> float:
    """Return the seconds until the deadline of the present call, at most ``longest`` and at least 0."""
    return max(0.0, min(longest, _deadline.get() - time.monotonic()))


def call_deadline() -> float:
    """Return the deadline of the present call, by the monotonic clock; infinite outside of one."""
    return _deadline.get()


@contextlib.contextmanager
def bounded(deadline: float) -> Iterator[None]:
    """Let :func:`seconds_left` know the deadline inside the block, by the monotonic clock."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


class DeadlineEnforcer:
    """Shuts down connections that are in use beyond a deadline; their driver then reports a broken connection.

    It has one thread, which sleeps while no call is under way, and ends with :meth:`close`.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[int, float] = {}  # by a descriptor of our own, which nobody else closes
        self._asleep = False
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextlib.contextmanager
    def watching(self, connection: object, deadline: float) -> Iterator[None]:
        """Shut down a driver's connection if the block takes longer; one without a descriptor is left alone."""
        descriptor = _duplicate_descriptor(connection)
        if descriptor is None:
            yield
            return
        with self._changed:
            self._due[descriptor] = deadline + GRACE
            if self._thread is None:
                self._thread = threading.Thread(target=self._enforce, name="balsam deadlines", daemon=True)
                self._thread.start()
            elif self._asleep:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._due.pop(descriptor, None)
                os.close(descriptor)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _enforce(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for descriptor in [one for one, due in self._due.items() if due <= now]:
                    del self._due[descriptor]
                    _shut_down(descriptor)
                self._asleep = not self._due
                self._changed.wait(None if self._asleep else POLL)
                self._asleep = False


def _duplicate_descriptor(connection: object) -> int | None:
    """Return another descriptor of a driver's connection, None where it has none."""
    try:
        return os.dup(connection.fileno())  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001  (a driver's own kind)
        return None


def _shut_down(descriptor: int) -> None:
    """End a connection in both directions, whoever waits for it."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        connection.shutdown(socket.SHUT_RDWR)
