"""Rows that this program can't read, as another version or a person with an editor leaves them, are errors of ours."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest

from balsam_core import App, Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.errors import BalsamError, Corrupt, InvalidInput, SchemaMismatch
from balsam_core.model.calls import ClaimJobs, GetHistory, RegisterLauncher, Resources, Update, UpdateJobs
from balsam_core.model.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from balsam_core import Database


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    initialise(tmp_path / "db", "sqlite")
    with open_db(tmp_path / "db") as opened:
        opened.jobs.add(Job(command="x", data={"a": 1}))
        yield opened


def read_job(db: Database) -> object:
    return db.jobs.get(1)


def read_history(db: Database) -> object:
    return db.run(GetHistory(jobs=[1]))


def add_child(db: Database) -> object:
    return db.jobs.add(Job(command="y", parents=[1]))


@pytest.mark.parametrize(
    ("change", "read", "error", "words"),
    [
        ("UPDATE jobs SET max_retries = -1", read_job, SchemaMismatch, "max_retries"),
        ("UPDATE jobs SET priority = 'high'", read_job, SchemaMismatch, "Expected `int`, got `str`"),
        ("UPDATE jobs SET state = 'PAUSED'", read_job, SchemaMismatch, "PAUSED"),
        ("UPDATE jobs SET state = 'PAUSED'", add_child, SchemaMismatch, "job 1 is in the state 'PAUSED'"),
        ("UPDATE jobs SET data = '[1]'", read_job, SchemaMismatch, "data"),
        ("UPDATE jobs SET data = '{'", read_job, Corrupt, "a document that can't be read"),
        ("UPDATE jobs SET state_since = 'never'", read_job, Corrupt, "a time that can't be read .'never'"),
        ("UPDATE jobs SET created_at = 5", read_job, Corrupt, "a time that can't be read .5"),
        ("UPDATE job_events SET transitions = 'READY'", read_history, Corrupt, "'READY'"),
        ("UPDATE job_events SET transitions = 'PAUSED 0'", read_history, Corrupt, "PAUSED"),
    ],
)
def test_what_is_wrong_is_said(
    db: Database, change: str, read: Callable[[Database], object], error: type[BalsamError], words: str
) -> None:
    with contextlib.closing(sqlite3.connect(db.directory.path / "db.sqlite3")) as file:
        file.execute(change)
        file.commit()
    with pytest.raises(error, match=words):
        read(db)


def test_a_launcher_is_told_that_a_job_has_another_state(db: Database) -> None:
    launcher = db.run(RegisterLauncher(host="h", pid=1, boot_id="", process_start=0.0, lease_seconds=60.0))
    [job] = db.run(ClaimJobs(launcher=launcher, limit=1, resources=Resources())).jobs
    with contextlib.closing(sqlite3.connect(db.directory.path / "db.sqlite3")) as file:
        file.execute("UPDATE jobs SET state = 'PAUSED'")
        file.commit()
    update = Update(job=1, attempt=job.attempt, transitions=[(State.STAGED_IN, 0.0)])
    answer = db.run(UpdateJobs(launcher=launcher, updates=[update]))
    assert answer == {1: "job 1 is in the state 'PAUSED', which this program doesn't know"}


def test_a_job_without_a_name_is_named_so(db: Database) -> None:
    db.apps.add(App("calc", "true {x}"))
    for job, words in (
        (Job(app="calc"), "the job without a name: app 'calc' needs the parameters x"),
        (Job(command="y", parents=[Job(command="z")]), "its parent, the job without a name, is not added yet"),
        (Job(command="y", parents=["1"]), "the job without a name: a parent is a Job"),
    ):
        with pytest.raises(InvalidInput, match=words):
            db.jobs.add(job)
