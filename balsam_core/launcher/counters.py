"""Where a launcher spends its time, for benchmarks and the log."""

from __future__ import annotations

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

    def timed(self, kind: str) -> _Timed:
        """Count the body of the ``with`` statement."""
        return _Timed(self, kind)


class _Timed:
    # For each job several times: a generator as a context manager takes three times as long.
    __slots__ = ("_counters", "_kind", "_start")

    def __init__(self, counters: Counters, kind: str) -> None:
        self._counters = counters
        self._kind = kind

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._counters.add(self._kind, perf_counter() - self._start)
