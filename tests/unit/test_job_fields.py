"""A field of a job has a home everywhere: these tests name the place that a new one lacks."""

from __future__ import annotations

import pytest

from balsam_core.model.job import FIELDS, GIVEN_BY_DATABASE, Job, _checks, field_infos
from balsam_core.operations import stored_fields
from balsam_core.schema import tables


def test_every_field_is_described() -> None:
    described = {line.split(":")[0].strip() for line in (Job.__doc__ or "").splitlines()}
    missing = [name for name in FIELDS if name not in described]
    assert not missing, f"not described in the docstring of Job (model/job.py): {missing}"


def test_every_field_of_a_new_job_has_an_option() -> None:
    from balsam_core.cli.commands.job import job

    options = {parameter.name for parameter in job.params}
    fields = [name for name in FIELDS if name not in GIVEN_BY_DATABASE]
    missing = [name for name in fields if name not in options]
    assert not missing, f"no option in cli/job_options.py gives: {missing}"


def test_every_text_and_document_of_a_new_job_is_checked() -> None:
    unchecked = {info.name for info in field_infos()} - _checks().keys() - GIVEN_BY_DATABASE
    texts = (str, list, dict)
    found = {name for name in unchecked if type(getattr(Job(), name)) in texts}
    assert found == {"parents"}, "model/job.py does not check these"


def test_a_field_without_a_column_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_fields, "FIELDS", (*FIELDS, "colour"))
    with pytest.raises(AssertionError, match=r"'colour' of Job .* no column: add it to jobs \(schema/tables.py\)"):
        stored_fields._check_homes()


@pytest.mark.parametrize(("table", "column"), [("jobs", "priority"), ("resource_classes", "num_nodes")])
def test_a_column_that_nobody_fills_is_named(monkeypatch: pytest.MonkeyPatch, table: str, column: str) -> None:
    assert column in tables.metadata.tables[table].columns
    monkeypatch.setattr(stored_fields, "FIELDS", tuple(name for name in FIELDS if name != column))
    with pytest.raises(AssertionError, match=rf"nobody fills the column {table}.{column} \(schema/tables.py\)"):
        stored_fields._check_homes()


def test_a_column_that_can_be_null_and_a_default_that_is_not_empty_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stored_fields.DEFAULT_FOR_NULL, "args", "-x")
    with pytest.raises(AssertionError, match=r"default of 'args': its column jobs\.args"):
        stored_fields._check_homes()


def test_the_lists_are_what_they_were() -> None:
    """Documents and optional texts are stored as NULL where they are empty, all else as it is."""
    assert set(stored_fields.DOCUMENTS) == {"parameters", "input_files", "stage_out_files", "environ", "data"}
    assert stored_fields.DOCUMENTS["input_files"] is list
    assert stored_fields.DOCUMENTS["data"] is dict
    assert set(stored_fields.DEFAULT_FOR_NULL.values()) == {""}
    assert {"id", "state", "attempt", "app", "num_nodes", "args"}.isdisjoint(stored_fields.COPIED)
    assert {"name", "priority", "key", "wall_time_minutes"} <= set(stored_fields.COPIED)
    # The text of a resource class is made in this order; another one would double the classes of a DB.
    assert stored_fields.RESOURCES == (
        "num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core", "gpus_per_rank", "node_packing_count",
    )  # fmt: skip
