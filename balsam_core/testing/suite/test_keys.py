"""Adding jobs under keys that exist: the same content, other content, and what is asked for then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from balsam_core.errors import Conflict, InvalidInput, PartlyDone
from balsam_core.model import calls
from balsam_core.model.app import App
from balsam_core.model.job import FIELDS, GIVEN_BY_DATABASE, Job
from balsam_core.model.states import State
from balsam_core.testing.tools import DONE, claim, register, update

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core import Database
    from balsam_core.client.jobs import Jobs

S = State

FULL: dict[str, Any] = {
    "name": "n", "workflow": "w", "description": "d é", "args": "-v {x}", "app": "sim",
    "parameters": {"x": 1, "y": [1.5, None, {"z": True}], "a": "é", "f": 2.0}, "wait_for_parents": False,
    "input_files": ["*.a"], "input_mode": "copy", "stage_in": "/in", "stage_out": "/out", "stage_out_files": ["*.b"],
    "user_workdir": "/here", "environ": {"A": "1", "B": "2"}, "preprocess": "pre", "postprocess": "post",
    "post_error_handler": True, "post_timeout_handler": True, "auto_timeout_retry": False, "max_retries": 3,
    "retry_delay_seconds": 0.5, "time_limit_minutes": 1.5, "priority": 7, "wall_time_minutes": 247, "num_nodes": 2,
    "ranks_per_node": 3, "threads_per_rank": 4,
    "threads_per_core": 2, "gpus_per_rank": 0.25, "node_packing_count": 5, "cpu_affinity": "depth",
    "data": {"k": {"b": 2, "a": 1e22}},
}  # fmt: skip
OTHER: dict[str, Any] = {
    "name": "m", "workflow": "v", "description": "", "args": "{x}", "parameters": {"x": 1.0, "y": [], "a": "é"},
    "wait_for_parents": True, "input_files": [], "input_mode": "link",
    "stage_in": "", "stage_out": "/o", "stage_out_files": ["*.c", "d"],
    "user_workdir": "", "environ": {"A": "2"}, "preprocess": "", "postprocess": "p", "post_error_handler": False,
    "post_timeout_handler": False, "auto_timeout_retry": True, "max_retries": 0, "priority": -1,
    "retry_delay_seconds": 0.0, "time_limit_minutes": 0.0,
    "wall_time_minutes": 248, "num_nodes": 1, "ranks_per_node": 1, "threads_per_rank": 1, "threads_per_core": 1,
    "gpus_per_rank": 0.0, "node_packing_count": 1, "cpu_affinity": "", "data": {"k": {"b": True}},
}  # fmt: skip


def test_the_same_content_is_there_already(db: Database, jobs: Jobs) -> None:
    db.apps.add(App("sim", "x {x}"))
    assert {*FULL} == {*FIELDS} - GIVEN_BY_DATABASE - {"command", "key", "parents"}
    (parent,) = jobs.add(Job(command="p", key="p"))
    (first,) = jobs.add(Job(**FULL, key="k", parents=[parent]))

    def run_again() -> list[int]:
        again = Job(command="p", key="p")
        child = Job(**{**FULL, "environ": {"B": "2", "A": "1"}}, key="k", parents=[again, again])
        ids = jobs.add([child, again])
        assert ids.existing == {first: "same", parent: "same"}
        assert jobs.add(Job(**FULL, key="k", parents=[parent]), if_exists="update").existing == {first: "same"}
        return ids

    assert run_again() == [first, parent]
    launcher = register(db)
    (claimed,) = claim(db, launcher, only=[parent])
    assert run_again() == [first, parent]
    update(db, launcher, claimed, *DONE[:-1], S.FAILED, release=True)
    assert jobs.where(id=parent).retry() == 1
    jobs.where(id=first).kill()
    assert run_again() == [first, parent]
    assert jobs.count() == 2


def test_a_name_left_out_is_the_default(db: Database, jobs: Jobs) -> None:
    db.apps.add(App("sim", "x"))
    jobs.add([Job(app="sim", key="a"), Job(command="x", key="b")])
    again = [Job(app="sim", name="sim", key="a"), Job(command="x", name="job", key="b", workflow="default")]
    assert set(jobs.add(again).existing.values()) == {"same"}


@pytest.mark.parametrize("field", OTHER)
def test_each_field_is_content(db: Database, jobs: Jobs, field: str) -> None:
    db.apps.add(App("sim", "x {x}"))
    (first,) = jobs.add(Job(**FULL, key="k"))
    changed = Job(**{**FULL, field: OTHER[field]}, key="k")
    with pytest.raises(Conflict, match=rf"job {first} with the key 'k' exists with other content \({field}") as refused:
        jobs.add([Job(command="new"), changed])
    assert " -> " in str(refused.value)
    assert "nothing was added or changed" in str(refused.value)
    assert changed.id is None
    assert jobs.ids() == [first]
    assert jobs.add(changed, if_exists="keep").existing == {first: "kept"}
    assert getattr(jobs.get(first), field) == FULL[field]
    changed.id = None
    ids = jobs.add([Job(command="new"), changed], if_exists="update")
    assert ids[1] == first
    assert ids.existing == {first: "updated"}
    stored = jobs.get(first)
    assert {name: getattr(stored, name) for name in FULL} == {**FULL, field: OTHER[field]}
    assert [event.message for event in jobs.history(first)] == ["", "changed by the user"]


def test_a_command_and_an_app_change_into_each_other(db: Database, jobs: Jobs) -> None:
    db.apps.add(App("sim", "x"))
    jobs.add(Job(command="a very long command " * 10 + "old", key="k"))
    with pytest.raises(Conflict) as refused:
        jobs.add(Job(command="a very long command " * 10 + "new", key="k"))
    assert 'old" -> ' in str(refused.value)
    assert len(str(refused.value)) < 400
    for app, command in (("sim", ""), ("", "b")):
        (job,) = jobs.add(Job(key="k", name="n", app=app, command=command), if_exists="update")
        assert (jobs.get(job).app, jobs.get(job).command) == (app, command)


def test_new_parents_are_waited_for_and_given_up_ones_not(db: Database, jobs: Jobs) -> None:
    one, two = jobs.add([Job(command="1"), Job(command="2")])
    (job,) = jobs.add(Job(command="x", key="k"))
    with pytest.raises(Conflict, match=rf"parents: \[\] -> \[{one},{two}\]"):
        jobs.add(Job(command="x", key="k", parents=[two, one]))
    jobs.add(Job(command="x", key="k", parents=[one, two]), if_exists="update")
    assert (jobs.get(job).state, jobs.get(job).parents) == (S.AWAITING_PARENTS, [one, two])
    (child,) = jobs.add(Job(command="c", parents=[job]))
    with pytest.raises(InvalidInput, match="circle"):
        jobs.add(Job(command="x", key="k", parents=[one, child]), if_exists="update")
    launcher = register(db)
    (claimed,) = claim(db, launcher, only=[two])
    update(db, launcher, claimed, *DONE, release=True)
    assert jobs.get(job).state == S.AWAITING_PARENTS
    jobs.add(Job(command="x", key="k", parents=[two]), if_exists="update")
    assert jobs.get(job).state == S.READY
    jobs.where(id=one).kill()
    assert jobs.get(job).state == S.READY
    jobs.add(Job(command="x", key="k", parents=[one]), if_exists="update")
    assert jobs.get(job).state == S.PARENT_KILLED


def test_a_dependency_added_later_is_no_other_content(db: Database, jobs: Jobs) -> None:
    one, two, three = jobs.add([Job(command="1"), Job(command="2"), Job(command="3")])
    launcher = register(db)
    (claimed,) = claim(db, launcher, only=[three])
    update(db, launcher, claimed, *DONE, release=True)
    (job,) = jobs.add(Job(command="x", key="k", parents=[one]))
    assert jobs.add_dependency(two, job) is True
    assert jobs.add_dependency(three, job) is True
    assert jobs.add(Job(command="x", key="k", parents=[one])).existing == {job: "same"}
    with pytest.raises(Conflict, match="parents"):
        jobs.add(Job(command="x", key="k", parents=[two]))
    jobs.add(Job(command="y", key="k", parents=[one]), if_exists="update")
    assert (jobs.get(job).command, jobs.get(job).parents) == ("y", [one, two, three])


def test_only_a_job_that_has_not_started_is_updated(db: Database, jobs: Jobs) -> None:
    (job,) = jobs.add(Job(command="x", key="k"))
    launcher = register(db)
    (claimed,) = claim(db, launcher, only=[job])

    def refused(state: str) -> None:
        with pytest.raises(Conflict, match=rf"job {job} with the key 'k' has .* \({state}\).*command: \"x\" -> \"y\""):
            jobs.add([Job(command="new"), Job(command="y", key="k")], if_exists="update")
        assert jobs.count() == 1
        assert jobs.add(Job(command="x", key="k"), if_exists="update").existing == {job: "same"}

    refused("READY")
    update(db, launcher, claimed, *DONE[:3])
    refused(DONE[2])
    update(db, launcher, claimed, S.RUN_ERROR, S.FAILED, release=True)
    refused("FAILED")
    jobs.where(id=job).retry()
    assert jobs.add(Job(command="y", key="k"), if_exists="update").existing == {job: "updated"}
    (again,) = claim(db, launcher, only=[job])
    assert again.command == "y"


def test_a_key_twice_in_one_insert_must_mean_one_job(jobs: Jobs) -> None:
    wishes: list[calls.IfExists] = ["error", "update"]
    for if_exists in wishes:
        with pytest.raises(Conflict, match="comes twice"):
            jobs.add([Job(command="x", key="k"), Job(command="y", key="k")], if_exists=if_exists)
    assert jobs.add([Job(command="x", key="k"), Job(command="x", key="k")]).existing == {}
    with pytest.raises(Conflict, match="comes twice"):
        jobs.add([Job(command="y", key="k"), Job(command="x", key="k")], if_exists="update")
    ids = jobs.add([Job(command="y", key="k"), Job(command="y", key="k")], if_exists="update")
    assert ids.existing == {ids[0]: "updated"}
    assert jobs.count() == 1


def test_many_jobs_at_once_may_be_added_again(db: Database, jobs: Jobs) -> None:
    count = 2 * calls.MOST_JOBS + 10

    def many(command: str, extra: int = 0) -> list[Job]:
        first = Job(command=command, key="0")
        rest = [Job(command=command, key=f"{number}", parents=[first]) for number in range(1, count + extra)]
        return [*rest, first]

    ids = jobs.add(many("x"))
    assert ids.existing == {}
    again = jobs.add(many("x", extra=1))
    assert again[: count - 1] == ids[:-1]
    assert again.existing == dict.fromkeys(ids, "same")
    assert jobs.count() == count + 1
    changed = many("x", extra=2)
    changed[-2].command = "y"
    changed[5].command = "z"
    with pytest.raises(Conflict, match="exists with other content"):
        jobs.add(changed)
    assert jobs.count() == count + 1
    assert {job.id for job in changed} == {None}
    last = jobs.add(changed, if_exists="update")
    assert jobs.count() == count + 2
    assert [jobs.get(last[index]).command for index in (4, 5, -3)] == ["x", "z", "x"]
    assert last.existing[last[5]] == "updated"
    launcher = register(db)
    assert [job.id for job in claim(db, launcher, only=[last[-1]])] == [last[-1]]
    changed = many("w", extra=3)
    with pytest.raises(Conflict, match=r"has started \(READY\).*nothing was added or changed"):
        jobs.add(changed, if_exists="update")
    assert jobs.count() == count + 2
    assert jobs.where(command="w").count() == 0


def test_a_job_that_starts_while_many_are_added_is_told(db: Database, jobs: Jobs) -> None:
    first, second = jobs.add([Job(command="x", key="a"), Job(command="x", key="b")])
    launcher = register(db)

    def stream() -> Iterator[Job]:
        yield Job(command="y", key="a")
        for _ in range(calls.MOST_JOBS):
            yield Job(command="new")
        assert [job.id for job in claim(db, launcher, only=[first])] == [first]
        yield Job(command="y", key="b")

    with pytest.raises(PartlyDone, match=r"added all new jobs and updated 0 existing jobs.*started") as told:
        jobs.add(stream(), if_exists="update")
    assert "nothing" not in str(told.value)
    assert jobs.count() == calls.MOST_JOBS + 2
    assert jobs.get(second).command == "x"


def test_a_wish_that_there_is_not_is_refused(jobs: Jobs) -> None:
    with pytest.raises(InvalidInput, match="error, keep, update"):
        jobs.add(Job(command="x"), if_exists="replace")  # type: ignore[arg-type]
