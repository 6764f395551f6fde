"""A job's history never goes back in time, whoever waited for whom and whatever the clients' clocks say."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update as update_rows

from balsam_core import Database, Job, open_db
from balsam_core.backends import registry
from balsam_core.model import calls
from balsam_core.model.states import State
from balsam_core.operations.execution import DatabaseClock, Tx, operation_of
from balsam_core.schema.tables import job_events, jobs
from balsam_core.testing.tools import DONE, claim, register, update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from balsam_core.dbdir.directory import DBDir

S = State
AHEAD = timedelta(seconds=40)
FAILED = (*DONE[:3], S.RUN_ERROR, S.FAILED)


@contextmanager
def owner(db: DBDir) -> Iterator[Connection]:
    """Give a connection in a transaction of its own."""
    engine = registry.load(db.db_type).create_engine(db, "owner")
    with engine.begin() as conn:
        yield conn
    engine.dispose()


@pytest.fixture
def db(each_db: DBDir) -> Iterator[Database]:
    with open_db(each_db.path) as opened:
        yield opened


def assert_in_order(db: Database, *ids: int) -> None:
    for job in ids:
        times = [event.at - timedelta(seconds=age) for event in db.jobs.history(job) for _, age in event.transitions]
        assert times == sorted(times), f"the history of job {job} goes back"
        since = db.jobs.get(job).state_since
        assert isinstance(since, datetime)
        assert abs(since - times[-1]) < timedelta(seconds=1e-5)


def test_what_waited_for_a_lock_is_not_dated_before_what_it_waited_for(each_db: DBDir, db: Database) -> None:
    """A launcher's report begins first, and waits for a transaction that adds a child to its job."""
    (parent,) = db.jobs.add(Job(command="p"))
    launcher = register(db)
    (held,) = claim(db, launcher)
    assert db.jobs.count() == 1  # the clock is read
    reported = threading.Thread(target=lambda: update(db, launcher, held, *DONE, release=True))
    with owner(each_db) as conn:
        tx = Tx(conn, DatabaseClock())
        tx.lock_ids("jobs")
        conn.execute(update_rows(jobs).where(jobs.c.id == parent).values(priority=1))
        reported.start()
        time.sleep(1.0)
        added = operation_of(calls.AddJobs(jobs=[]))(tx, calls.AddJobs(jobs=[Job(command="c", parents=[parent])]))
    reported.join(60)
    assert db.jobs.get(added.first_id).state == S.READY
    assert_in_order(db, parent, added.first_id)


def finish(db: Database, parent: int, child: int) -> None:
    launcher = register(db)
    (held,) = claim(db, launcher, only=[parent])
    update(db, launcher, held, *DONE, release=True)


def fail(db: Database, parent: int, child: int) -> None:
    launcher = register(db)
    (held,) = claim(db, launcher, only=[parent])
    changes = [(state, 30.0 - number) for number, state in enumerate(FAILED)]
    told = calls.Update(job=parent, attempt=held.attempt, transitions=changes, release=True)
    assert db.run(calls.UpdateJobs(launcher=launcher, updates=[told])) == {}
    assert db.jobs.get(child).state == S.FAILED


def kill_and_retry(db: Database, parent: int, child: int) -> None:
    assert db.jobs.where(id=parent).kill() == 1
    assert db.jobs.get(child).state == S.PARENT_KILLED
    assert db.jobs.where(id=parent).retry() == 1
    assert db.jobs.get(child).state == S.AWAITING_PARENTS


def lose_the_launcher(db: Database, parent: int, child: int) -> None:
    launcher = register(db)
    (held,) = claim(db, launcher, only=[parent])
    update(db, launcher, held, *DONE[:3])
    db.run(calls.CloseLauncher(launcher=launcher))
    assert db.jobs.get(parent).state == S.RESTART_READY


def depend_and_change(db: Database, parent: int, child: int) -> None:
    (third,) = db.jobs.add(Job(command="t"))
    assert db.jobs.add_dependency(third, parent)
    assert db.jobs.add(Job(command="q", key="p", parents=[]), if_exists="update").existing == {parent: "updated"}


@pytest.mark.parametrize("change", [finish, fail, kill_and_retry, lose_the_launcher, depend_and_change])
def test_a_later_change_is_not_dated_before_one_by_a_clock_that_is_ahead(
    each_db: DBDir, db: Database, change: Callable[[Database, int, int], Any]
) -> None:
    parent = Job(command="p", key="p")
    child = Job(command="c", parents=[parent])
    ids = db.jobs.add([parent, child])
    with owner(each_db) as conn:
        since = conn.execute(jobs.select().with_only_columns(jobs.c.state_since)).scalars().first()
        assert since is not None
        conn.execute(update_rows(jobs).values(state_since=since + AHEAD))
        conn.execute(update_rows(job_events).values(at=since + AHEAD))
    change(db, *ids)
    assert_in_order(db, *ids)
    assert len(db.jobs.history(ids[0])) > 1


def test_promoted_jobs_are_not_dated_before_they_were_added(each_db: DBDir, db: Database) -> None:
    (parent,) = db.jobs.add(Job(command="p"))
    staged = db.run(calls.OpenStagedInsert())
    given = [Job(command="c", parents=[parent]), Job(command="d", parents=[parent], wait_for_parents=False)]
    first = db.run(calls.AddJobs(jobs=given, staged_insert=staged)).first_id
    with owner(each_db) as conn:
        since = conn.execute(jobs.select().with_only_columns(jobs.c.state_since)).scalars().first()
        assert since is not None
        conn.execute(update_rows(jobs).values(state_since=since + AHEAD))
    db.run(calls.PublishStagedInsert(staged_insert=staged))
    db.run(calls.PromoteStagedInsert(staged_insert=staged))
    assert [db.jobs.get(job).state for job in (first, first + 1)] == [S.AWAITING_PARENTS, S.READY]
    for job in (first, first + 1):
        (event,) = db.jobs.history(job)
        assert event.at == db.jobs.get(job).state_since == since + AHEAD
