"""Where each field of a job is stored, worked out from the tables: no list of fields is kept by hand.

A field is a column of ``jobs``, or comes from a small table that ``jobs`` refers to, or from the record of the job's
last attempt, or is ``parents``, which are rows of ``job_edges``. A field without a home, and a column that nobody
fills, stop the import of this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from balsam_core.model.job import FIELDS, GIVEN_BY_DATABASE, OF_ATTEMPT, field_infos
from balsam_core.schema.tables import apps, attempts, jobs, resource_classes, workflows
from balsam_core.schema.types import JSONDocument

if TYPE_CHECKING:
    from sqlalchemy import Column

_JOBS_COLUMNS_WITHOUT_FIELD = {
    "workflow_id", "app_id", "resource_class_id", "claim_class", "claim_request_seq", "parents_left",
    "staged_insert_id",
}  # fmt: skip
"""Filled by the operations themselves, as are the columns of ``resource_classes`` below."""

_CLASS_COLUMNS_WITHOUT_FIELD = {"id", "shape", "wall_minutes"}

RESOURCES = tuple(column.name for column in resource_classes.c if column.name not in _CLASS_COLUMNS_WITHOUT_FIELD)
"""Fields that live in the resource class, in the order of its columns."""

IN_SMALL_TABLE: dict[str, Column[Any]] = {
    "workflow": workflows.c.name,
    "app": apps.c.name,
    **{name: resource_classes.c[name] for name in RESOURCES},
}
"""Fields that come from a small table, and their columns there."""

IN_ATTEMPTS: dict[str, Column[Any]] = {name: attempts.c[name] for name in OF_ATTEMPT}
"""Fields that come from the record of the attempt whose number the job has, and their columns there."""

REFERENCES = {key.column.table.name: key.parent.name for key in jobs.foreign_keys}
"""The small tables, and the columns of ``jobs`` that refer to them."""

DOCUMENTS: dict[str, type] = {
    info.name: info.default_factory
    for info in field_infos()
    if info.name in jobs.c and isinstance(jobs.c[info.name].type, JSONDocument)
}
"""JSON fields, and what makes an empty one. Empty ones are stored as NULL."""

DEFAULT_FOR_NULL: dict[str, Any] = {
    info.name: info.default
    for info in field_infos()
    if info.name in jobs.c and jobs.c[info.name].nullable and info.name not in DOCUMENTS and info.default is not None
}
"""Fields whose default is stored as NULL, with the default: optional texts."""

COPIED = tuple(
    name
    for name in FIELDS
    if name in jobs.c and name not in GIVEN_BY_DATABASE and name not in DOCUMENTS and name not in DEFAULT_FOR_NULL
)
"""Fields of a new job that are stored as they are."""


def _check_homes() -> None:
    for name in FIELDS:
        if name != "parents" and not any(name in homes for homes in (jobs.c, IN_SMALL_TABLE, IN_ATTEMPTS)):
            raise AssertionError(
                f"the field {name!r} of Job (model/job.py) has no column: add it to jobs (schema/tables.py) and in a "
                f"migration"
            )
    for table, known in ((jobs, _JOBS_COLUMNS_WITHOUT_FIELD), (resource_classes, _CLASS_COLUMNS_WITHOUT_FIELD)):
        for column in table.columns:
            if column.name not in FIELDS and column.name not in known:
                raise AssertionError(
                    f"nobody fills the column {column} (schema/tables.py): add a field to Job "
                    f"(model/job.py), or name it in operations/stored_fields.py and fill it in an operation"
                )
    for name, default in {**DOCUMENTS, **DEFAULT_FOR_NULL}.items():
        if not jobs.c[name].nullable or (default() if name in DOCUMENTS else default):
            raise AssertionError(
                f"NULL stands for the default of {name!r}: its column jobs.{name} (schema/tables.py) must be nullable "
                f"and its default (model/job.py) empty"
            )


_check_homes()
