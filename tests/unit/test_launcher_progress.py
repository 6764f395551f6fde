"""A run is shown as one live line on a terminal and as few plain lines elsewhere."""

from __future__ import annotations

import io

import pytest

from balsam_core.launcher.progress import LiveProgress, PlainProgress, Snapshot, duration, progress_on


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.9, "0:07"), (61, "1:01"), (3723, "1:02:03"), (360000, "100:00:00")]
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text


def test_a_snapshot_is_one_line():
    shot = Snapshot(seconds=10.0, finished=40, failed=2, killed=1, running=3, queued=7, remark="the disk is full")
    assert shot.text() == ("40 finished, 2 failed, 1 killed, 3 running, 7 claimed, 4.2 jobs/s, 0:10 (the disk is full)")


def test_a_plain_line_is_not_repeated():
    stream = io.StringIO()
    progress = progress_on(stream)
    assert isinstance(progress, PlainProgress)
    progress.show(Snapshot(seconds=1.0))
    for seconds in (2.0, 3.0):
        progress.show(Snapshot(seconds=seconds, finished=1))
    progress.close()
    assert stream.getvalue() == "1 finished, 0 failed, 0 running, 0.5 jobs/s, 0:02\n"


def test_a_terminal_shows_a_live_line_and_is_left_clean(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = progress_on(stream)
    assert isinstance(progress, LiveProgress)
    for finished in (1, 2):
        progress.show(Snapshot(seconds=1.0, finished=finished, failed=1, killed=1, remark="[/b] no markup"))
    progress.close()
    shown = stream.getvalue()
    assert "2 finished" in shown
    assert "[/b] no markup" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back


def test_a_terminal_that_can_do_nothing_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_on(Terminal()), PlainProgress)
