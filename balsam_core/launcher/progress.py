"""How the progress of a run is shown: one live line on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.live import Live


PLAIN_EVERY = 60.0  # seconds between two lines, once a run has lasted as long


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The progress of a launcher at one moment.

    Attributes:
        seconds: Since its start.
        finished: Jobs that finished.
        failed: Jobs that failed.
        killed: Jobs that the user killed.
        running: Jobs that run.
        queued: Jobs claimed but not started.
        left: Jobs that this launcher, and those beside it, have before them; None where that isn't known.
        more_left: Whether there are more than ``left``.
        seconds_left: How long these will take at the present rate; None where that can't be said.
        remark: What is unusual, e.g. that the database doesn't answer; empty for nothing.
    """

    seconds: float
    finished: int = 0
    failed: int = 0
    killed: int = 0
    running: int = 0
    queued: int = 0
    left: int | None = None
    more_left: bool = False
    seconds_left: float | None = None
    remark: str = ""

    def parts(self) -> Iterator[tuple[str, str]]:
        """Give the parts of a line, without the remark, each with its style for rich."""
        if self.left is not None:
            done = self.finished + self.failed + self.killed
            yield f"{done:,} of {'more than ' if self.more_left else ''}{done + self.left:,} done", "bold"
        yield f"{self.finished} finished", "green" if self.finished else "dim"
        yield f"{self.failed} failed", "bold red" if self.failed else "dim"
        if self.killed:
            yield f"{self.killed} killed", "yellow"
        yield f"{self.running} running", "blue" if self.running else "dim"
        if self.queued:
            yield f"{self.queued} claimed", "dim"
        rate = (self.finished + self.failed) / self.seconds if self.seconds > 0 else 0.0
        yield f"{rate:.1f} jobs/s", "dim"
        yield duration(self.seconds), "dim"
        if self.seconds_left is not None and self.left:
            yield f"{duration(self.seconds_left)} left", "dim"

    def text(self) -> str:
        """Return it as one line."""
        return ", ".join(text for text, _ in self.parts()) + (f" ({self.remark})" if self.remark else "")


class Progress:
    """Shows the progress of a launcher; this base class shows nothing.

    Attributes:
        every: Seconds between two calls of :meth:`show`.
    """

    every = 3600.0

    def show(self, snapshot: Snapshot) -> None:
        """Show it."""

    def show_last(self, snapshot: Snapshot) -> None:
        """Show how the run ended."""
        self.show(snapshot)

    def close(self) -> None:
        """Remove the display."""


class PlainProgress(Progress):
    """Writes a line to a stream when something has changed, later once a minute, whether or not something has."""

    every = 5.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = Snapshot(seconds=0.0)

    def show(self, snapshot: Snapshot) -> None:
        """Write a line where one is due."""
        last = self._last
        is_due = snapshot.seconds - last.seconds >= PLAIN_EVERY or snapshot.remark != last.remark
        if is_due or (snapshot.seconds < PLAIN_EVERY and _differ(snapshot, last)):
            self._write(snapshot)

    def show_last(self, snapshot: Snapshot) -> None:
        """Write a line, unless nothing but the time has changed."""
        if _differ(snapshot, self._last):
            self._write(snapshot)

    def _write(self, snapshot: Snapshot) -> None:
        self._last = snapshot
        self._stream.write(f"{snapshot.text()}\n")
        self._stream.flush()


def _differ(one: Snapshot, other: Snapshot) -> bool:
    return any(getattr(one, name) != getattr(other, name) for name in ("finished", "failed", "killed", "running"))


class LiveProgress(Progress):
    """Keeps one line of a terminal up to date."""

    every = 0.25

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Live | None = None

    def show(self, snapshot: Snapshot) -> None:
        """Redraw the line."""
        from rich.text import Text

        parts = [*snapshot.parts(), (snapshot.remark, "yellow")]
        line = Text("  ").join(Text(text, style) for text, style in parts)
        line.no_wrap, line.overflow = True, "ellipsis"
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            # No refresh thread: this process changes its working directory while it starts another one.
            self._live = Live(console=Console(file=self._stream), auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(line, refresh=True)

    def close(self) -> None:
        """Remove the line."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def progress_on(stream: TextIO) -> Progress:
    """Return what fits the stream: live on a terminal, plain lines elsewhere."""
    import os

    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return LiveProgress(stream)
    return PlainProgress(stream)


def duration(seconds: float) -> str:
    """Return a duration as a clock shows it: ``0:07``, ``1:02:03``."""
    whole = int(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
