"""A run is shown as one live line on a terminal and as few plain lines elsewhere."""

from __future__ import annotations

import io

import pytest

from balsam_core.launcher import forecast as forecast_module
from balsam_core.launcher.forecast import COUNTED, Forecast
from balsam_core.launcher.options import LauncherOptions
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


def test_a_snapshot_tells_how_much_is_left():
    shot = Snapshot(seconds=10.0, finished=40, failed=2, left=1151, seconds_left=274.0)
    assert shot.text() == "42 of 1,193 done, 40 finished, 2 failed, 0 running, 4.2 jobs/s, 0:10, 4:34 left"
    more = Snapshot(seconds=10.0, finished=1, left=100_000, more_left=True)
    assert more.text().startswith("1 of more than 100,001 done, ")


def test_plain_lines_come_once_a_minute_even_when_nothing_changes():
    stream = io.StringIO()
    progress = PlainProgress(stream)
    for seconds in range(5, 400, 5):
        progress.show(Snapshot(seconds=float(seconds), finished=1 if seconds < 200 else seconds, running=1))
    progress.show(Snapshot(seconds=400.0, finished=395, running=1, remark="the disk is full"))
    progress.show_last(Snapshot(seconds=401.0, finished=395, running=1))
    shown = [line.split(", ")[-1] for line in stream.getvalue().splitlines()]
    assert shown == ["0:05", "1:05", "2:05", "3:05", "4:05", "5:05", "6:05", "6:40 (the disk is full)"]


# ---- what is left


class Counted:
    """Answers to counts, in turn."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = []

    def __call__(self, call):
        self.calls.append(call)
        return self.answers.pop(0)


def forecast(*answers, monkeypatch, **options):
    run = Counted(*answers)
    made = Forecast(run, LauncherOptions(slots=1, **options))
    now = iter(range(0, 10_000, 5))
    monkeypatch.setattr(forecast_module, "monotonic", lambda: next(now))  # 5 s from each look to the next
    return made, run


def test_the_rest_takes_as_long_as_the_counts_say(monkeypatch):
    made, _ = forecast(100, 80, monkeypatch=monkeypatch)
    assert (made.left(0), made.seconds(0, 2.0)) == (None, None)
    made.count(0)
    assert (made.left(0), made.left(10)) == (100, 90)
    assert made.seconds(10, 2.0) == 45.0  # at this launcher's own rate, as long as nothing else is known
    made.count(10)  # 20 jobs less after 10 s, so others help
    assert (made.left(12), made.seconds(12, 1.0)) == (78, 39.0)


def test_jobs_that_are_added_or_too_many_leave_no_forecast(monkeypatch):
    made, _ = forecast(10, 50, COUNTED, monkeypatch=monkeypatch)
    made.count(0)
    made.count(5)
    assert (made.left(5), made.seconds(5, 1.0)) == (50, None)
    made.count(5)
    assert (made.left(9), made.seconds(9, 1.0)) == (COUNTED, None)


def test_only_the_launchers_own_jobs_are_counted(monkeypatch):
    made, run = forecast(1, monkeypatch=monkeypatch, workflow="w")
    made.count(0)
    assert run.calls[0].where.parts[0].value == "w"
    made, run = forecast(2000, 1, monkeypatch=monkeypatch, only=tuple(range(2001)))
    made.count(0)
    assert (made.left(0), len(run.calls)) == (2001, 2)
    made, run = forecast(monkeypatch=monkeypatch, only=tuple(range(10**6)))
    made.count(0)
    assert (made.left(0), run.calls) == (None, [])
