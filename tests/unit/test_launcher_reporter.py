"""Changes are written once, kept while the database is away, and not written twice after a lost answer."""

from __future__ import annotations

from time import monotonic

import pytest

from balsam_core.errors import Busy, OutcomeUnknown
from balsam_core.launcher.counters import Counters
from balsam_core.launcher.job.claimed_job import ClaimedJob, LauncherContext
from balsam_core.launcher.options import FLUSH_AT
from balsam_core.launcher.reporter import Reporter
from balsam_core.model.calls import GetRows, UpdateJobs
from balsam_core.model.job import Job
from balsam_core.model.states import END, State, first_illegal_transition

ME = 7


class Table:
    """Stands for the database: applies updates by the rules of the real one, and breaks when recorded to."""

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


def new_job(table, number=1, state=State.PREPROCESSED):
    table.rows[number] = {"state": state, "attempt": 1, "launcher_id": ME}
    context = LauncherContext(directory=None, environment={}, counters=Counters())
    return ClaimedJob(Job(id=number, command="true", state=state, attempt=1), None, [], context)


def change(reporter, job, *states, release=False):
    for state in states:
        job.reach(state)
    job.released = release
    reporter.add(job)


def test_each_recorded_change_is_reported_once_and_no_other(table):
    recorded = []
    reporter = Reporter(table, ME, recorded.extend)
    first, second = new_job(table, 1), new_job(table, 2)
    change(reporter, first, State.RUNNING)
    change(reporter, second, State.RUNNING)
    table.rows[2]["attempt"] = 2  # another launcher has it
    table.breaks = ["busy"]
    with pytest.raises(Busy):
        reporter.flush()
    assert recorded == []
    assert [job for job, _ in reporter.flush()] == [second]
    assert [(one.job, [transition for transition, _ in one.transitions]) for one in recorded] == [(1, [State.RUNNING])]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_change_whose_answer_was_lost_is_reported_once(table, when):
    recorded = []
    reporter = Reporter(table, ME, recorded.extend)
    job = new_job(table)
    change(reporter, job, State.RUNNING)
    table.breaks = [when]
    with pytest.raises(OutcomeUnknown):
        reporter.flush()
    change(reporter, job, State.RUN_DONE)
    reporter.flush()
    assert [transition for one in recorded for transition, _ in one.transitions] == [State.RUNNING, State.RUN_DONE]


def test_all_changes_share_one_write(reporter, table):
    for number in range(1, 4):
        change(reporter, new_job(table, number), State.RUNNING, State.RUN_DONE)
    assert reporter.flush() == []
    assert len(table.calls) == 1
    assert len(table.history) == 6
    assert reporter.jobs == {}
    assert reporter.due() is None


def test_a_change_is_written_after_a_moment_or_when_there_are_many(reporter, table):
    change(reporter, new_job(table, 1), State.RUNNING)
    assert monotonic() < reporter.due() < monotonic() + 1.0
    for number in range(2, FLUSH_AT + 1):
        change(reporter, new_job(table, number), State.RUNNING)
    assert reporter.due() <= monotonic()


def test_ages_are_those_at_the_time_of_writing(reporter, table):
    job = new_job(table)
    now = monotonic()
    job.transitions = [(State.RUNNING, now - 5.0), (State.RUN_DONE, now - 1.0)]
    reporter.add(job)
    reporter.flush()
    (update,) = table.calls[0].updates
    assert [state for state, _ in update.transitions] == [State.RUNNING, State.RUN_DONE]
    assert [age for _, age in update.transitions] == [pytest.approx(5.0, abs=1.0), pytest.approx(1.0, abs=1.0)]


def test_changes_are_kept_while_the_database_is_away(reporter, table):
    job = new_job(table)
    table.breaks = ["busy", "busy"]
    change(reporter, job, State.RUNNING)
    with pytest.raises(Busy):
        reporter.flush()
    change(reporter, job, State.RUN_DONE)
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
    job = new_job(table, state=start)
    table.breaks = [when]
    change(reporter, job, *path, release=release)
    with pytest.raises(OutcomeUnknown):
        reporter.flush()
    assert reporter.in_doubt
    assert reporter.flush() == []
    assert not reporter.in_doubt
    assert table.history == [(1, state) for state in path]
    assert table.rows[1]["launcher_id"] == (ME if path == [State.RUNNING] else None)
    assert reporter.jobs == {}


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_happened_after_a_lost_answer_is_written_too(reporter, table, when):
    job = new_job(table)
    table.breaks = [when]
    change(reporter, job, State.RUNNING)
    with pytest.raises(OutcomeUnknown):
        reporter.flush()
    job.reach(State.RUN_ERROR, "exit code 1")
    change(reporter, job, State.FAILED)
    assert reporter.flush() == []
    assert [state for _, state in table.history] == ["RUNNING", "RUN_ERROR", "FAILED"]
    assert table.calls[-1].updates[0].message == "exit code 1"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_release_after_a_lost_answer_is_written_too(reporter, table, when):
    """A job that waited for this write is given back, because the launcher ends."""
    job = new_job(table)
    table.breaks = [when]
    change(reporter, job, State.RUNNING, State.RUN_DONE)
    with pytest.raises(OutcomeUnknown):
        reporter.flush()
    job.released = True
    assert reporter.flush() == []
    assert [state for _, state in table.history] == ["RUNNING", "RUN_DONE"]
    assert table.rows[1]["launcher_id"] is None
    assert reporter.jobs == {}


def test_what_an_attempt_took_is_sent_with_its_end(reporter, table):
    job = new_job(table)
    job.begun_at = monotonic() - 3.0
    change(reporter, job, State.RUNNING)
    reporter.flush()
    job.elapsed, job.cpu_seconds, job.max_memory = 2.0, 1.0, 4096
    change(reporter, job, State.RUN_DONE, State.POSTPROCESSED, State.JOB_FINISHED)
    reporter.flush()
    first, last = (call.updates[0].run for call in table.calls)
    assert first is None
    assert (last.elapsed, last.cpu_seconds, last.max_memory) == (2.0, 1.0, 4096)
    assert last.started == pytest.approx(3.0, abs=1.0)


def test_a_refused_change_is_named_and_forgotten(reporter, table):
    lost, kept = new_job(table, 1), new_job(table, 2)
    table.rows[1]["attempt"] = 2
    change(reporter, lost, State.RUNNING)
    change(reporter, kept, State.RUNNING)
    assert reporter.flush() == [(lost, "not yours")]
    assert table.history == [(2, State.RUNNING)]
    assert reporter.jobs == {}


def test_a_giant_message_is_cut(reporter, table):
    job = new_job(table)
    job.reach(State.FAILED, "x" * 100_000)
    reporter.add(job)
    reporter.flush()
    assert len(table.calls[0].updates[0].message) == 2000
