"""Requests to stop: Ctrl-C, SIGTERM, a closed terminal."""

from __future__ import annotations

import contextlib
import os
import signal
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["StopRequests"]


class StopRequests:
    """Counts signals that ask a program to stop, and wakes its selector; for the main thread.

    A signal that was ignored when the program was started (``nohup``, a shell's background job) stays ignored.

    Attributes:
        number: The first signal that came; None for none.
        count: How many came.
        at: When the first one came, by the monotonic clock.
        descriptor: Becomes readable when one came.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.count = 0
        self.at = 0.0
        self.descriptor, self._end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()
        self._before: dict[int, Any] = {}
        self._wakeup = -1

    def __enter__(self) -> Self:
        self._wakeup = signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._came)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.descriptor)
        os.close(self._end)

    def _came(self, number: int, _: object) -> None:
        self.count += 1
        if self.number is None:
            self.number = number
            self.at = monotonic()

    def drain(self) -> None:
        """Read what woke the selector."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.descriptor, 4096):
                pass


def _pipe() -> tuple[int, int]:  # macOS
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends
