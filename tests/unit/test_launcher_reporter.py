"""Changes are told once, kept while nobody listens, and not told twice after a lost answer."""

from __future__ import annotations

from time import monotonic

import pytest

from balsam_core.errors import Busy, OutcomeUnknown
from balsam_core.launcher.counters import Counters
from balsam_core.launcher.job.task import LauncherContext, Task
from balsam_core.launcher.options import FLUSH_AT
from balsam_core.launcher.reporter import Reporter
from balsam_core.model.calls import GetRows, UpdateJobs
from balsam_core.model.job import Job
from balsam_core.model.states import END, State, first_illegal_transition

ME = 7


class Table:
    """Stands for the database: applies updates by the rules of the real one, and breaks when told to."""

    def __init__(self):
        self.rows = {}
        self.history = []
        self.calls = []
        self.breaks = []  # of the next writes: "before" or "after" they take effect

    def __call__(self, call):
        self.calls.append(call)
        if isinstance(call, GetRows):
            assert call.fields == ["id", "state", "attempt", "launcher_id"]
            return [
                [job, row["state"], row["attempt"], row["launcher_id"]]
                for job, row in self.rows.items()
                if job in call.where.value
            ]
        assert isinstance(call, UpdateJobs)
        how = self.breaks.pop(0) if self.breaks else ""
        if how == "busy":
            raise Busy("held by others")
        if how == "before":
            raise OutcomeUnknown("no answer")
        refused = {update.job: why for update in call.updates if (why := self._apply(update))}
        if how == "after":
            raise OutcomeUnknown("no answer")
        return refused

    def _apply(self, update):
        row = self.rows[update.job]
        transitions = [state for state, _ in update.transitions]
        if (row["attempt"], row["launcher_id"]) != (update.attempt, ME):
            return "not yours"
        if first_illegal_transition(row["state"], transitions):
            return "wrong path"
        self.history += [(update.job, state) for state in transitions]
        row["state"] = transitions[-1] if transitions else row["state"]
        if update.release or row["state"] in END:
            row["launcher_id"] = None
        return ""


@pytest.fixture
def table():
    return Table()


@pytest.fixture
def reporter(table):
    return Reporter(table, ME)


def new_task(table, number=1, state=State.PREPROCESSED):
    table.rows[number] = {"state": state, "attempt": 1, "launcher_id": ME}
    around = LauncherContext(directory=None, environment={}, counters=Counters())
    return Task(Job(id=number, command="true", state=state, attempt=1), None, [], around)


def go(reporter, task, *states, release=False):
    for state in states:
        task.reach(state)
    task.released = release
    reporter.note(task)


def test_each_recorded_change_is_told_once_and_no_other(table):
    told = []
    reporter = Reporter(table, ME, told.extend)
    first, second = new_task(table, 1), new_task(table, 2)
    go(reporter, first, State.RUNNING)
    go(reporter, second, State.RUNNING)
    table.rows[2]["attempt"] = 2  # another launcher has it
    table.breaks = ["busy"]
    with pytest.raises(Busy):
        reporter.flush()
    assert told == []
    assert [task for task, _ in reporter.flush()] == [second]
    assert [(one.job, [transition for transition, _ in one.transitions]) for one in told] == [(1, [State.RUNNING])]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_change_whose_answer_was_lost_is_told_once(table, when):
    told = []
    reporter = Reporter(table, ME, told.extend)
    task = new_task(table)
    go(reporter, task, State.RUNNING)
    table.breaks = [when]
    with pytest.raises(OutcomeUnknown):
        reporter.flush()
    go(reporter, task, State.RUN_DONE)
    reporter.flush()
    assert [transition for one in told for transition, _ in one.transitions] == [State.RUNNING, State.RUN_DONE]


def test_all_changes_share_one_write(reporter, table):
    for number in range(1, 4):
        go(reporter, new_task(table, number), State.RUNNING, State.RUN_DONE)
    assert reporter.flush() == []
    assert len(table.calls) == 1
    assert len(table.history) == 6
    assert reporter.tasks == {}
    assert reporter.due() is None


def test_a_change_is_written_after_a_moment_or_when_there_are_many(reporter, table):
    go(reporter, new_task(table, 1), State.RUNNING)
    assert monotonic() < reporter.due() < monotonic() + 1.0
    for number in range(2, FLUSH_AT + 1):
        go(reporter, new_task(table, number), State.RUNNING)
    assert reporter.due() <= monotonic()


def test_ages_are_those_at_the_time_of_writing(reporter, table):
    task = new_task(table)
    now = monotonic()
    task.transitions = [(State.RUNNING, now - 5.0), (State.RUN_DONE, now - 1.0)]
    reporter.note(task)
    reporter.flush()
    (update,) = table.calls[0].updates
    assert [state for state, _ in update.transitions] == [State.RUNNING, State.RUN_DONE]
    assert [age for _, age in update.transitions] == [pytest.approx(5.0, abs=1.0), pytest.approx(1.0, abs=1.0)]


def test_changes_are_kept_while_the_database_is_away(reporter, table):
    task = new_task(table)
    table.breaks = ["busy", "busy"]
    go(reporter, task, State.RUNNING)
    with pytest.raises(Busy):
        reporter.flush()
    go(reporter, task, State.RUN_DONE)
    with pytest.raises(Busy):
        reporter.flush()
    reporter.flush()
    assert table.history == [(1, State.RUNNING), (1, State.RUN_DONE)]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("start", "path", "release"),
    [
        (State.PREPROCESSED, [State.RUNNING], False),
        (State.RUNNING, [State.RUN_DONE, State.POSTPROCESSED, State.JOB_FINISHED], False),
        (State.RESTART_READY, [State.RUNNING, State.RUN_ERROR, State.RESTART_READY], True),
        (State.READY, [], True),
    ],
)
def test_a_lost_answer_neither_loses_nor_doubles_a_change(reporter, table, when, start, path, release):
    task = new_task(table, state=start)
    table.breaks = [when]
    go(reporter, task, *path, release=release)
    with pytest.raises(OutcomeUnknown):
        reporter.flush()
    assert reporter.doubtful
    assert reporter.flush() == []
    assert not reporter.doubtful
    assert table.history == [(1, state) for state in path]
    assert table.rows[1]["launcher_id"] == (ME if path == [State.RUNNING] else None)
    assert reporter.tasks == {}


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_happened_after_a_lost_answer_is_told_too(reporter, table, when):
    task = new_task(table)
    table.breaks = [when]
    go(reporter, task, State.RUNNING)
    with pytest.raises(OutcomeUnknown):
        reporter.flush()
    task.reach(State.RUN_ERROR, "exit code 1")
    go(reporter, task, State.FAILED)
    assert reporter.flush() == []
    assert [state for _, state in table.history] == ["RUNNING", "RUN_ERROR", "FAILED"]
    assert table.calls[-1].updates[0].message == "exit code 1"


def test_a_refused_change_is_named_and_forgotten(reporter, table):
    lost, kept = new_task(table, 1), new_task(table, 2)
    table.rows[1]["attempt"] = 2
    go(reporter, lost, State.RUNNING)
    go(reporter, kept, State.RUNNING)
    assert reporter.flush() == [(lost, "not yours")]
    assert table.history == [(2, State.RUNNING)]
    assert reporter.tasks == {}


def test_a_giant_message_is_cut(reporter, table):
    task = new_task(table)
    task.reach(State.FAILED, "x" * 100_000)
    reporter.note(task)
    reporter.flush()
    assert len(table.calls[0].updates[0].message) == 2000
