"""What a change in several steps says when one of them fails: how much was done, or that all or nothing was.

The fault is another connection that takes the database between two transactions and doesn't give it back.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from balsam_program import here

from balsam_core import App, Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.cli import selectors
from balsam_core.client.slices import REPEAT, RETRY_REST
from balsam_core.errors import BalsamError, Conflict, PartlyDone, Unavailable
from balsam_core.testing.tools import claim, register
from balsam_core.transport import base

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNT = 6_000  # jobs; several slices
PARTLY_DONE = PartlyDone.exit_code


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(base, "DEFAULT_TIMEOUT", 3.0)
    return initialise(tmp_path / "db").db.path


@contextlib.contextmanager
def taken_when(path: Path, condition: str) -> Iterator[None]:
    """Hold the database against all writers, from before the first transaction at which an SQL condition is true."""
    with contextlib.closing(sqlite3.connect(path / "db.sqlite3", isolation_level=None)) as other:

        def take(_: sa.Connection) -> None:
            if not other.in_transaction and other.execute(f"SELECT {condition}").fetchone()[0]:
                other.execute("BEGIN IMMEDIATE")

        sa.event.listen(sa.Engine, "begin", take)
        try:
            yield
        finally:
            sa.event.remove(sa.Engine, "begin", take)
        assert other.in_transaction, "the fault never came"


def add_many(path: Path, state: str = "") -> None:
    with open_db(path) as db:
        db.jobs.add(Job(command="true") for _ in range(COUNT))
    if state:
        with contextlib.closing(sqlite3.connect(path / "db.sqlite3")) as other, other:
            other.execute("UPDATE jobs SET state = ?, claim_class = NULL", [state])


def count(path: Path, condition: str = "1") -> int:
    with contextlib.closing(sqlite3.connect(path / "db.sqlite3")) as other:
        found: int = other.execute(f"SELECT count(*) FROM jobs WHERE {condition}").fetchone()[0]
        return found


def test_jobs_that_are_published_are_added_whatever_comes_then(path: Path) -> None:
    with open_db(path) as db:
        with taken_when(path, "EXISTS (SELECT 1 FROM staged_inserts WHERE published)"):
            ids = db.jobs.add(Job(command="true") for _ in range(COUNT))
        assert ids == list(range(1, COUNT + 1))
        assert db.jobs.count() == COUNT
    assert count(path, "claim_class IS NULL") > 0, "the fault came too late"
    here("launcher", "--consume-all", "--time-limit-minutes", "0.02", db=path)
    assert count(path, "state = 'READY' AND claim_class IS NULL AND launcher_id IS NULL") == 0


def test_before_that_none_is_added_and_they_can_be_added_again(path: Path) -> None:
    jobs = [Job(command="true") for _ in range(COUNT)]
    with open_db(path) as db:
        with (
            taken_when(path, "count(*) > 2000 FROM jobs"),
            pytest.raises(Unavailable) as caught,
        ):
            db.jobs.add(jobs)
        assert "may or may not" not in str(caught.value)
        assert db.jobs.count() == 0
        assert {job.id for job in jobs} == {None}
        assert len(db.jobs.add(jobs)) == db.jobs.count() == COUNT


CHANGES = {
    "kill": ("", "killed", "state = 'USER_KILLED'"),
    "retry": ("FAILED", "retried", "state = 'READY'"),
    "remove": ("FAILED", "removed", ""),
}


@pytest.mark.parametrize("verb", CHANGES)
@pytest.mark.parametrize("by", ["api", "cli"])
def test_a_change_that_fails_on_the_way_says_how_many_were_changed(path: Path, verb: str, by: str) -> None:
    state, word, changed = CHANGES[verb]
    add_many(path, state)
    when = f"count(*) > 0 FROM jobs WHERE {changed}" if changed else f"count(*) < {COUNT} FROM jobs"
    with taken_when(path, when):
        if by == "api":
            with open_db(path) as db, pytest.raises(PartlyDone) as caught:
                getattr(db.jobs.where(workflow="default"), verb)()
            message = str(caught.value)
        else:
            words = ("rm", "all", "--yes") if verb == "remove" else (verb, "all")
            message = here.refused(*words, db=path, code=PARTLY_DONE)
    done = count(path, changed) if changed else COUNT - count(path)
    assert 0 < done < COUNT
    assert message.startswith(f"{word} {done} jobs, then it failed: ")
    assert message.endswith(RETRY_REST if verb == "retry" else REPEAT)


def test_the_last_slice_of_a_removal_is_known_as_such(path: Path) -> None:
    begun = []

    def note(connection: sa.Connection) -> None:
        begun.append(connection)

    with open_db(path) as db:
        db.jobs.add([Job(command="true") for _ in range(3)])
        sa.event.listen(sa.Engine, "begin", note)
        try:
            assert len(db.jobs.where(workflow="default").remove()) == 3
        finally:
            sa.event.remove(sa.Engine, "begin", note)
    what = "the look for dead launchers, the check and one slice: after the last job is gone nothing can fail any more"
    assert len(begun) == 3, what


@pytest.mark.parametrize("by", ["api", "cli"])
@pytest.mark.parametrize("fault", ["needed", "held"])
def test_what_forbids_a_removal_is_found_before_the_first_slice(path: Path, fault: str, by: str) -> None:
    with open_db(path) as db:
        db.jobs.add(Job(command="true"))  # the newest go first
        db.jobs.add(Job(command="true", workflow="other", parents=[1]))
        if fault == "held":
            claim(db, register(db))
    add_many(path)
    if by == "api":
        with open_db(path) as db, pytest.raises(Conflict) as caught:
            db.jobs.where(workflow="default").remove()
        message = str(caught.value)
    else:
        message = here.refused("rm", "wf:default", "--yes", db=path, code=Conflict.exit_code)
    assert count(path) == COUNT + 2
    if fault == "needed":
        word = "cascade=True" if by == "api" else "--cascade"
        assert message.endswith(f"its children 2 have not finished and need it: remove them with it ({word})")
    else:
        assert "job 1 is held by a launcher" in message


def test_what_comes_to_forbid_a_removal_is_told_without_the_advice_to_repeat_it(path: Path) -> None:
    add_many(path)
    with open_db(path) as db:
        db.jobs.add(Job(command="true", workflow="other"))
    with contextlib.closing(sqlite3.connect(path / "db.sqlite3", isolation_level=None)) as other:

        def depend(_: sa.Connection) -> None:
            if count(path) <= COUNT and not other.execute("SELECT 1 FROM job_edges").fetchone():
                other.execute("INSERT INTO job_edges (parent_id, child_id) VALUES (1, ?)", [COUNT + 1])

        sa.event.listen(sa.Engine, "begin", depend)
        try:
            message = here.refused("rm", "wf:default", "--yes", db=path, code=PARTLY_DONE)
        finally:
            sa.event.remove(sa.Engine, "begin", depend)
    removed = COUNT + 1 - count(path)
    assert 0 < removed < COUNT
    assert message.startswith(f"removed {removed} jobs, then it failed: job 1 can't be removed, since its children")
    assert message.endswith("have not finished and need it")


def test_a_selection_of_several_conditions_is_checked_as_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selectors, "MOST_IDS", 2)
    with open_db(path) as db:
        parent = Job(command="true")
        db.jobs.add([parent, *(Job(command="true", parents=[parent]) for _ in range(5))])
    message = here.refused("rm", "1-5,1,2,3,4,5", "--yes", db=path, code=Conflict.exit_code)
    assert "job 1 can't be removed, since its children 6 have not finished" in message
    assert count(path) == 6
    here.good("rm", "1,2,3,4,5,6", "--yes", db=path)
    assert count(path) == 0


def test_a_refusal_before_anything_was_changed_stays_what_it_is(path: Path) -> None:
    add_many(path, "FAILED")
    with taken_when(path, "1"), open_db(path) as db, pytest.raises(BalsamError) as caught:
        db.jobs.where(workflow="default").retry()
    assert not isinstance(caught.value, PartlyDone)
    assert count(path, "state = 'FAILED'") == COUNT


def test_apps_that_are_defined_or_removed_before_one_is_refused_are_counted(path: Path) -> None:
    with open_db(path) as db:
        db.apps.add(App("taken", "true"))
        with pytest.raises(PartlyDone, match=r"^defined 1 app, then it failed: app 'taken' exists"):
            db.apps.add(App("new", "true"), App("taken", "false"), App("never", "true"))
        assert [app.name for app in db.apps] == ["new", "taken"]
        db.jobs.add(Job(app="taken"))
    message = here.refused("rm", "apps", "new", "taken", "--yes", db=path, code=PARTLY_DONE)
    assert message.startswith("removed 1 app, then it failed: ")


def test_a_job_that_is_added_is_told_even_if_it_can_not_be_read(path: Path) -> None:
    # Its record needs a value that this program can't read; the id is known from the insert.
    with contextlib.closing(sqlite3.connect(path / "db.sqlite3")) as other, other:
        other.execute(
            "CREATE TRIGGER spoil AFTER INSERT ON jobs "
            "BEGIN UPDATE jobs SET state_since = 'never' WHERE id = new.id; END"
        )
    done = here("run", "-o", "json", "--", "true", db=path)
    assert (done.code, done.json["id"], done.json["command"]) == (0, 1, "true"), done
    assert "Warning: job 1 is added, but its record can't be read" in done.err


def test_an_interrupted_change_says_how_far_it_came(path: Path) -> None:
    add_many(path)

    def interrupt(_: sa.Connection) -> None:
        if count(path, "state = 'USER_KILLED'"):
            raise KeyboardInterrupt

    sa.event.listen(sa.Engine, "begin", interrupt)
    try:
        done = here("kill", "all", db=path)
    finally:
        sa.event.remove(sa.Engine, "begin", interrupt)
    killed = count(path, "state = 'USER_KILLED'")
    assert 0 < killed < COUNT
    assert done.code == 130
    assert done.err == f"Interrupted: killed {killed} jobs before it was interrupted; repeat it for the rest\n"


def test_many_ids_know_which_others_are_chosen(path: Path) -> None:
    with open_db(path) as db:
        late = Job(command="true")
        jobs = [Job(command="true") for _ in range(700)]
        db.jobs.add([*jobs, late])
        db.jobs.add_dependency(late, jobs[0])
        db.jobs.kill()
    ids = "\n".join(map(str, range(1, 702)))
    assert here.good("retry", "-", "-o", "json", stdin=ids, db=path).json["retried"] == 701
    assert here.good("rm", "-", "--yes", "-o", "json", stdin=ids, db=path).json["removed"] == 701
