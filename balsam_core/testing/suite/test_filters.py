"""Conditions mean the same on every database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from balsam_core.errors import InvalidInput
from balsam_core.model.app import App
from balsam_core.model.job import Job

if TYPE_CHECKING:
    from balsam_core import Database
    from balsam_core.client.jobs import Jobs
    from balsam_core.model.calls import Where

LATER = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def three(db: Database) -> Jobs:
    db.apps.add(App("sim", "x"))
    db.jobs.add(
        [
            Job(app="sim", name="Alpha", workflow="one", priority=3, num_nodes=2),
            Job(command="a%b", name="alpha", workflow="One", description="50%_x\\"),
            Job(command="c", name="beta", workflow="two", key="K", priority=-1),
        ]
    )
    return db.jobs


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        (Job.name == "alpha", "2"),
        (Job.name != "alpha", "13"),
        (Job.name.contains("pha"), "12"),
        (Job.name.contains("PHA"), ""),
        (Job.name.contains(""), "123"),
        (Job.name.startswith("al"), "2"),
        (Job.description.contains("%_"), "2"),
        (Job.description.contains("_%"), ""),
        (Job.description.startswith("50%_x\\"), "2"),
        (Job.description == "", "13"),
        (Job.command.startswith("a%"), "2"),
        (Job.workflow == "one", "1"),
        (Job.workflow.in_(["one", "two", "none"]), "13"),
        (Job.app == "sim", "1"),
        (Job.app == "", "23"),
        (Job.app != "sim", "23"),
        (Job.app != "", "1"),
        (Job.app.in_(["", "other"]), "23"),
        (~(Job.app == "sim"), "23"),
        (~(Job.key == "K"), "12"),
        (~~(Job.key == "K"), "3"),
        (~(Job.key > "A"), "12"),
        (Job.key.in_(["K", None]), "123"),
        (~(Job.workflow == "one"), "23"),
        (Job.num_nodes > 1, "1"),
        ((Job.priority > 2) | (Job.key == "K"), "13"),
        ((Job.priority > 2) & (Job.key == "K"), ""),
        (Job.key == None, "12"),  # noqa: E711  (a condition, not a comparison)
        (Job.key != None, "3"),  # noqa: E711
        (Job.id.in_([]), ""),
        (Job.state == "READY", "123"),
        (Job.wait_for_parents == True, "123"),  # noqa: E712
        (Job.created_at > LATER, ""),
        (Job.created_at < LATER, "123"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_condition(three: Jobs, condition: Where, found: str) -> None:
    first = three.ids()[0]
    assert "".join(str(number - first + 1) for number in three.where(condition).ids()) == found


def test_order_and_limit(three: Jobs) -> None:
    first, second, third = three.ids()
    assert three.order_by("priority", descending=True).ids() == [first, second, third]
    assert three.order_by(Job.workflow).ids() == [second, first, third]
    assert three.limit(2).ids() == [first, second]
    found = three.first()
    assert found is not None
    assert found.name == "Alpha"
    row: list[Any] = ["Alpha", "sim", 2, [], first]
    assert list(three.where(id=first).rows("name", Job.app, "num_nodes", "parents", "id")) == [row]


@pytest.mark.parametrize(
    "wrong",
    [
        Job.state == "NONSENSE",
        Job.priority == "high",
        Job.parameters == {},
        Job.name == 3,
        Job.id > None,
        Job.key < None,
    ],
)
def test_nonsense_is_refused(jobs: Jobs, wrong: Where) -> None:
    with pytest.raises(InvalidInput):
        jobs.where(wrong).ids()


def test_a_field_that_no_job_has_is_named(jobs: Jobs) -> None:
    with pytest.raises(InvalidInput, match="no field 'colour'"):
        jobs.where(colour="red")
