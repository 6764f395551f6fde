"""Values come back as they went in, and compare the same everywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from balsam_core.errors import InvalidInput
from balsam_core.model.app import App
from balsam_core.model.job import GIVEN_BY_DATABASE, Job, field_infos
from balsam_core.model.states import State

if TYPE_CHECKING:
    from msgspec.structs import FieldInfo

    from balsam_core import Database
    from balsam_core.client.jobs import Jobs

PARTICULAR: dict[str, Any] = {
    "name": "näme 🎈\n/../x",
    "workflow": "Wörk",
    "description": "d" * 70_000,
    "app": "sim",
    "args": "--more '{x} y'",
    "parameters": {"x": 1.5, "y": ["a", None, {"b": True}], "z": "🎈"},
    "stage_in": "/some stage_in",
    "stage_out": "~/some stage_out",
    "user_workdir": "/some user_workdir",
    "environ": {"K": "v=1"},
    "priority": -7,
    "gpus_per_rank": 0.25,
    "cpu_affinity": "0,2-3",
    "data": {"n": 2**53 + 1},
    "input_mode": "copy",
}
NOT_GIVEN = {"parents", "command", *GIVEN_BY_DATABASE}


def other_value(field: FieldInfo) -> Any:  # noqa: ANN401
    """Return a value that is not the field's default."""
    name, default = field.name, field.default
    if name in PARTICULAR:
        return PARTICULAR[name]
    if field.default_factory is list:
        return [name, "*.x"]
    if isinstance(default, bool):
        return not default
    if isinstance(default, (int, float)):
        return default + 3
    assert default in {"", None}, f"give {name!r} a value in PARTICULAR"
    return f"some {name}"


GIVEN: dict[str, Any] = {field.name: other_value(field) for field in field_infos() if field.name not in NOT_GIVEN}


def test_every_field_comes_back_as_it_went_in(db: Database, jobs: Jobs) -> None:
    db.apps.add(App("sim", "sim.x --x {x} {y}", environ={"A": "1"}))
    job = Job(**GIVEN)
    jobs.add(job)
    assert job.id is not None
    found = jobs.get(job.id)
    assert {name: getattr(found, name) for name in GIVEN} == GIVEN
    assert (found.state, found.attempt, found.retries, found.return_code) == (State.READY, 0, 0, None)


def test_jobs_are_chosen_and_sorted_by_every_field(db: Database, jobs: Jobs) -> None:
    db.apps.add(App("sim", "sim.x --x {x} {y}"))
    plain = Job(command="x", name="plain")
    both = jobs.add([plain, Job(**GIVEN)])
    for name, value in GIVEN.items():
        if isinstance(value, (list, dict)):
            continue
        assert jobs.where(**{name: value}).ids() == [both[1]], name
        assert jobs.where(**{name: getattr(plain, name)}).ids() == [both[0]], name
        values = [getattr(plain, name), value]
        assert [row[0] for row in jobs.order_by("id").rows(name)] == values, name
        ordered = sorted(values, key=lambda one: (one is not None, one))
        assert [row[0] for row in jobs.order_by(name).rows(name)] == ordered, name
        assert [row[0] for row in jobs.order_by(name, descending=True).rows(name)] == ordered[::-1], name


@pytest.mark.parametrize(
    "text",
    [
        *("tab\t", "\r\n", "\\", "\\N", "\\.", "'", '"', "`", "%s %(x)s", ":name", "?", "$1", "{x}"),
        *("\x7f\x01", "\ufeff", "e\u0301", "𝔘"),
    ],
    ids=ascii,
)
def test_no_text_is_special(jobs: Jobs, text: str) -> None:
    job = Job(command="x", name=text, workflow=f"w{text}", description=text, key=f"k{text}", data={text: [text]})
    (number,) = jobs.add(job)
    found = jobs.get(number)
    assert (found.name, found.workflow, found.description) == (text, f"w{text}", text)
    assert (found.key, found.data) == (f"k{text}", {text: [text]})
    assert jobs.where(name=text, key=f"k{text}").ids() == [number]
    assert jobs.where(Job.description.contains(text)).ids() == [number]


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), True, False, None, "", [], {}, [[[]]], {"b": 1, "a": {"": 2}}),
        *(0.1, -0.5, 1.0, 1e22, 1e300, 1.7976931348623157e308, 5e-324, 1e-7),
    ],
    ids=repr,
)
def test_documents_keep_values_and_types(jobs: Jobs, value: object) -> None:
    (number,) = jobs.add(Job(command="x", data={"value": value}))
    found = jobs.get(number).data["value"]
    assert (type(found), found) == (type(value), value)


def test_the_longest_texts_fit(jobs: Jobs) -> None:
    long = {"name": "🎈" * 10_000, "workflow": "🎈" * 255, "key": "🎈" * 255, "description": "🎈" * 1_000_000}
    (number,) = jobs.add(Job(command="x", **long))  # type: ignore[arg-type]
    found = jobs.get(number)
    assert {name: getattr(found, name) for name in long} == long
    assert jobs.where(workflow=long["workflow"], key=long["key"]).ids() == [number]
    deep: Any = 1
    for _ in range(30):
        deep = [deep]
    (number,) = jobs.add(Job(command="x", data={"deep": deep, "long": "é" * 1_000_000}))
    assert jobs.get(number).data == {"deep": deep, "long": "é" * 1_000_000}


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Job(), "either an app or a command"),
        (Job(app="a", command="b"), "not both"),
        (Job(command="  "), "blank"),
        (Job(command="echo 'x"), "close the quotation"),
        (Job(command="x", name="a\0b"), "NUL"),
        (Job(command="x", workflow=""), "workflow is empty"),
        (Job(command="x", workflow="w" * 256), "at most 255"),
        (Job(command="x", name="n" * 10_001), "at most 10000"),
        (Job(command="x", key="k" * 256), "at most 255"),
        (Job(command="x", num_nodes=0), ">= 1"),
        (Job(command="x", priority=2**31), "<= 2147483647"),
        (Job(command="x", parameters={"x": float("nan")}), "JSON can't"),
        (Job(command="x", parameters={"x": 2**63}), "64-bit"),
        (Job(command="x", parameters={"x": {"deep": ["a\0"]}}), "NUL"),
        (Job(command="x", data={"x": "\ud800"}), "surrogate"),
        (Job(command="x", environ={"A=B": "1"}), "'='"),
        (Job(app="known"), "needs the parameters x"),
        (Job(app="known", parameters={"x": 1}, args="{zzz}"), "zzz"),
        (Job(command="x", parents=[0]), "parent"),
        (Job(command="x", parents=[-1]), "parent"),
        (Job(command="x", parents=["1"]), "parent"),  # type: ignore[list-item]
    ],
)
def test_a_wrong_job_is_refused_and_nothing_is_written(db: Database, jobs: Jobs, job: Job, words: str) -> None:
    db.apps.add(App("known", "known {x}"))
    (last,) = jobs.add(Job(command="before"))
    with pytest.raises(InvalidInput, match=words):
        jobs.add([Job(command="fine"), job])
    assert jobs.count() == 1
    assert jobs.add(Job(command="after"))[0] == last + 1, "a refused insert gives its ids back"


def test_times_are_utc_with_microseconds(db: Database, jobs: Jobs) -> None:
    ids = [jobs.add(Job(command="x"))[0] for _ in range(5)]
    found = [jobs.get(number).created_at for number in ids]
    now = datetime.now(UTC)
    times = [time for time in found if time is not None]
    assert times == sorted(times)
    assert len(set(times)) == len(ids), "microseconds are lost"
    assert all(time.tzinfo == UTC and abs(time - now) < timedelta(minutes=2) for time in times)
    assert any(time.microsecond % 1000 for time in times)
    assert jobs.where(Job.created_at == times[2]).ids() == [ids[2]]
    assert jobs.where(Job.created_at > times[2]).ids() == ids[3:]
    assert abs(db.info().now - now) < timedelta(minutes=2)


def test_texts_compare_byte_by_byte(jobs: Jobs) -> None:
    words = [*"aBAbäzZé", "e\u0301", "ß", "ss", "\uffff", "😀", "a-b", "ab", "a b", "_", "1", "10", "9"]
    jobs.add(Job(command="x", name=word, workflow=f"order-{word}") for word in words)
    expected = sorted(words, key=str.encode)
    assert [name for (name,) in jobs.order_by("name").rows("name")] == expected
    assert [name for (name,) in jobs.order_by("workflow").rows("name")] == expected
    for word in words:
        assert [name for (name,) in jobs.where(name=word).rows("name")] == [word]
        assert [name for (name,) in jobs.where(workflow=f"order-{word}").rows("name")] == [word]
        above = [name for (name,) in jobs.where(Job.name > word).order_by("name").rows("name")]
        assert above == [other for other in expected if other.encode() > word.encode()]


def test_a_space_at_the_end_counts(jobs: Jobs) -> None:
    first, second = jobs.add(
        [Job(command="x", name="a", key="k", workflow="p"), Job(command="x", name="a ", key="k ", workflow="p ")]
    )
    assert first != second, "the keys are different"
    for field, value in (("name", "a"), ("key", "k"), ("workflow", "p")):
        assert jobs.where(**{field: value}).ids() == [first], field
        assert jobs.where(**{field: f"{value} "}).ids() == [second], field
    assert [jobs.get(number).workflow for number in (first, second)] == ["p", "p "]
