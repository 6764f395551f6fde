"""The judge of the random-fault test, on evidence written by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from journal_judge import (
    AT_THE_END,
    IN_A_BACKUP,
    Call,
    Evidence,
    Line,
    Row,
    back_in_time,
    judge,
    read_journal,
    read_log,
)

from balsam_core.model.calls import Event
from balsam_core.model.states import State

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = "CREATED READY STAGED_IN PREPROCESSED RUNNING RUN_DONE POSTPROCESSED JOB_FINISHED"
KILLED = "CREATED READY USER_KILLED"


def add(*names, answer=None, error=None, sent=1.0, ended=2.0):
    return Call("add", list(names), sent, ended=ended, answer=answer, error=error)


def kill(job, answer=None, error=None, ended=4.0):
    return Call("kill", ["?"], 3.0, job=job, ended=ended, answer=answer, error=error)


def history(job, states, attempts=(1,), seconds=1):
    """Return one event a state, so many seconds apart; the attempts change in the end."""
    names = states.split()
    numbers = [attempts[0]] * (len(names) - len(attempts) + 1) + list(attempts[1:])
    return [
        Event(
            job_id=job, at=BEGINNING + i * timedelta(seconds=seconds), transitions=[(State(name), 0.0)], attempt=attempt
        )
        for i, (name, attempt) in enumerate(zip(names, numbers, strict=True))
    ]


def log(text):
    """Read ``start 1 by 7, end 1 by 7``."""
    return [
        Line(what, int(job), int(launcher), int(launcher))
        for what, job, _, launcher in (line.split() for line in text.split(", "))
    ]


def evidence(**changes):
    """Return that of a good run, a parent and its child, with changes."""
    good = {
        "calls": [add("a", "b", answer=[1, 2])],
        "rows": [Row(1, "a", State.JOB_FINISHED, 1), Row(2, "b", State.JOB_FINISHED, 1, (1,))],
        "events": history(1, GOOD) + history(2, GOOD),
        "lines": log("start 1 by 7, end 1 by 7, start 2 by 7, end 2 by 7"),
    }
    return Evidence(**{**good, **changes})


def kinds(*, rules=(*AT_THE_END, back_in_time), **changes):
    """Return the kinds of faults that are found."""
    return set(judge(evidence(**changes), rules))


A, B = evidence().rows
KILLED_ROWS = {"rows": [A._replace(state=State.USER_KILLED)], "events": history(1, KILLED), "lines": []}


def test_good_run():
    assert kinds() == set()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("lost", {"calls": [add("a", "b", answer=[1, 2]), add("c", answer=[3])]}),
        ("lost", {"calls": [*evidence().calls, kill(1, answer=1)]}),
        ("lost", {"calls": [*evidence().calls, Call("retry", ["a"], 3.0, job=1, ended=4.0, answer=1)]}),
        ("doubled", {"rows": [A, B, B._replace(id=3)], "events": evidence().events + history(3, GOOD)}),
        ("doubled", {**KILLED_ROWS, "calls": [add("a", answer=[1])]}),
        ("torn", {"rows": [A], "events": history(1, GOOD), "calls": [add("a", "b", error="outcome-unknown")]}),
        ("denied", {"calls": [add("a", "b", error="unavailable")]}),
        ("misnumbered", {"calls": [add("a", "b", answer=[1, 3])]}),
        ("misnumbered", {"calls": [*evidence().calls, add("c", answer=[1])]}),
        ("unsent", {"calls": []}),
        ("not_a_prefix", {"calls": [add("c", answer=[3], ended=0.5), *evidence().calls]}),
        ("back_in_history", {"events": evidence().events[::-1]}),
        ("back_in_time", {"events": history(1, GOOD) + history(2, GOOD, seconds=-1)}),
        ("back_in_history", {"rows": [A._replace(state=State.RUNNING), B]}),
        ("back_in_history", {"events": history(1, GOOD) + history(2, GOOD.replace("PREPROCESSED ", ""))}),
        ("back_in_history", {"events": history(1, GOOD) + history(2, GOOD, attempts=(2, 1))}),
        ("never_ran", {"lines": log("start 1 by 7, end 1 by 7, start 2 by 7, failed 2 by 7")}),
        ("ran_at_once", {"lines": log("start 1 by 7, start 1 by 8, end 1 by 7, end 1 by 8, start 2 by 7, end 2 by 7")}),
        ("ran_at_once", {"lines": log("start 1 by 7, start 1 by 8, stopped 1 by 7, end 1 by 8, end 2 by 7")}),
        ("before_parents", {"lines": log("start 1 by 7, start 2 by 7, end 1 by 7, end 2 by 7")}),
        ("stuck", {"rows": [A, B._replace(state=State.AWAITING_PARENTS)]}),
    ],
)
def test_each_fault_is_named(kind, changes):
    assert kind in kinds(**changes)


@pytest.mark.parametrize("error", [None, "outcome-unknown", "killed"])
def test_unknown_outcomes_may_be_stored_or_not(error):
    call = add("a", "b", error=error)
    assert kinds(calls=[call]) == set()
    assert kinds(calls=[call], rows=[], events=[], lines=[]) == set()
    for killed in (kill(1, error=error), kill(1, answer=1)):
        assert kinds(calls=[add("a", answer=[1]), killed], **KILLED_ROWS) == set()


def test_an_attempt_runs_once():
    twice = GOOD.replace("RUN_DONE", "RUN_TIMEOUT RESTART_READY RUNNING RUN_DONE")
    assert kinds(events=history(1, twice) + history(2, GOOD)) == {"ran_at_once"}


def test_backup_holds_what_was_acknowledged_before_it_began():
    late = add("c", answer=[3], sent=4.0, ended=6.0)
    early = add("c", answer=[3], sent=4.0, ended=5.0)
    assert kinds(rules=IN_A_BACKUP, calls=[*evidence().calls, late], began=5.5) == set()
    assert kinds(rules=IN_A_BACKUP, calls=[*evidence().calls, early], began=5.5) == {"lost"}


def test_journals_and_logs_that_end_in_mid_line(tmp_path):
    journal, runs = tmp_path / "w.journal", tmp_path / "runs.log"
    lines = [
        {"call": 1, "kind": "add", "names": ["a"], "at": 1.0},
        {"call": 1, "answer": [5], "at": 2.0},
        {"call": 2, "kind": "kill", "names": ["a"], "job": 5, "at": 3.0},
        {"call": 2, "error": "conflict", "text": "no", "at": 4.0},
        {"call": 3, "kind": "kill", "names": ["a"], "job": 5, "at": 5.0},
    ]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"call": 3, "ans')
    first, second, third = read_journal(journal)
    assert (first.acked, first.answer, first.ended) == (True, [5], 2.0)
    assert (second.acked, second.unknown, second.error, second.job) == (False, False, "conflict", 5)
    assert (third.acked, third.unknown, third.ended) == (False, True, None)
    runs.write_text("start 1 2 3\nend 1 2 3\nsta")
    assert read_log(runs) == [Line("start", 1, 2, 3), Line("end", 1, 2, 3)]
    assert read_journal(tmp_path / "missing") == []
