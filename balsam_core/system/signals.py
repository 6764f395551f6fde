"""Signals that ask a program to stop: Ctrl-C, SIGTERM, a closed terminal."""

from __future__ import annotations

import contextlib
import os
import signal
from time import monotonic
from typing import Any, Self

BATCH_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
"""Signals that batch systems and terminals send to all processes."""

BATCH_EXIT_CODES = frozenset(code for number in BATCH_SIGNALS for code in (-number, 128 + number))
"""Exit codes of processes that one of these has ended; a shell passes on the latter."""


class StopRequests:
    """Counts the signals that ask this program to stop, and wakes its selector; for the main thread.

    A signal that was ignored when the program was started (``nohup``, a shell's background job) stays ignored.

    Attributes:
        number: The first signal that arrived; None for none.
        count: How many arrived.
        at: When the first one arrived, by the monotonic clock.
        descriptor: Becomes readable when one arrives.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.count = 0
        self.at = 0.0
        self.descriptor, self._write_end = os.pipe()
        for end in (self.descriptor, self._write_end):
            os.set_blocking(end, False)
        self._old_handlers: dict[int, Any] = {}
        self._old_wakeup = -1

    def __enter__(self) -> Self:
        self._old_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._old_handlers[number] = signal.signal(number, self._record_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self.descriptor)
        os.close(self._write_end)

    def _record_signal(self, number: int, _: object) -> None:
        self.count += 1
        if self.number is None:
            self.number = number
            self.at = monotonic()

    def drain(self) -> None:
        """Read from the descriptor what woke the selector."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.descriptor, 4096):
                pass
