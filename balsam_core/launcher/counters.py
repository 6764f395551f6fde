"""Where a launcher spends its time, for benchmarks and the log."""

from __future__ import annotations

from collections.abc import Iterator  # noqa: TC003
from contextlib import contextmanager
from time import perf_counter


class Counters:
    """Seconds and number of times, by kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.times: dict[str, int] = {}

    def __str__(self) -> str:
        return ", ".join(f"{kind} {self.seconds[kind]:.3f} ({self.times[kind]} times)" for kind in sorted(self.seconds))

    def add(self, kind: str, seconds: float) -> None:
        """Count one piece of work."""
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
        self.times[kind] = self.times.get(kind, 0) + 1

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count the body of the ``with`` statement."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(kind, perf_counter() - start)
