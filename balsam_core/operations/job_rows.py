"""Rows of jobs: which columns are read, what the small tables and the dependencies add, and how they are deleted."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, or_, select

from balsam_core.errors import InvalidInput
from balsam_core.model.job import FIELDS, Job
from balsam_core.operations.conditions import in_chunks
from balsam_core.operations.stored_fields import DEFAULT_FOR_NULL, DOCUMENTS, IN_ATTEMPTS, IN_SMALL_TABLE, REFERENCES
from balsam_core.schema.prepared import PreparedList
from balsam_core.schema.tables import attempts, job_edges, job_events, jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Select

    from balsam_core.operations.execution import Tx

KnownValues = dict[str, dict[int | None, Any]]
"""Values by id of fields that come from small tables. "parents" there means that the jobs have none, and "attempts"
that none has ended."""

_REFERENCE_OF = {field: REFERENCES[column.table.name] for field, column in IN_SMALL_TABLE.items()}


def _columns_of(fields: Sequence[str]) -> list[ColumnElement[Any]]:
    names = dict.fromkeys(["id", *(_REFERENCE_OF.get(field, field) for field in fields if field != "parents")])
    if not IN_ATTEMPTS.keys().isdisjoint(names):
        names = dict.fromkeys([*(name for name in names if name not in IN_ATTEMPTS), "attempt"])
    return [jobs.c[name] for name in names]


COLUMNS_OF_JOB = _columns_of(FIELDS)
"""What is read of a whole job from ``jobs``."""


def read_jobs(tx: Tx, narrow: Callable[[Select[Any]], Select[Any]]) -> list[Job]:
    """Read whole jobs; ``narrow`` adds conditions, order and limit to a query on ``jobs``."""
    return jobs_from_rows(tx, tx.execute(narrow(select(*COLUMNS_OF_JOB))).mappings().all())


def read_fields(tx: Tx, fields: Sequence[str], narrow: Callable[[Select[Any]], Select[Any]]) -> list[list[Any]]:
    """Read fields of jobs, a list of values for each job; see :func:`read_jobs`.

    Raises:
        InvalidInput: A field doesn't exist.
    """
    for field in fields:
        if field not in FIELDS:
            raise InvalidInput(f"a job has no field {field!r}; fields are: {', '.join(FIELDS)}")
    return _field_values(tx, fields, tx.execute(narrow(select(*_columns_of(fields)))).mappings().all())


def jobs_from_rows(tx: Tx, rows: Sequence[Mapping[Any, Any]], known: KnownValues | None = None) -> list[Job]:
    """Return jobs, of which the rows are given with :data:`COLUMNS_OF_JOB`."""
    return [Job(**dict(zip(FIELDS, values, strict=True))) for values in _field_values(tx, FIELDS, rows, known)]


def _field_values(
    tx: Tx, fields: Sequence[str], rows: Sequence[Mapping[Any, Any]], known: KnownValues | None = None
) -> list[list[Any]]:
    """Return fields of jobs, of which the rows are given."""
    if not rows:
        return []
    small: KnownValues = dict(known or {})
    small.update(_read_small_tables(tx, [field for field in fields if field not in small], rows))
    of_attempts = [field for field in fields if field in IN_ATTEMPTS]
    ended = _read_attempts(tx, of_attempts, rows) if of_attempts and "attempts" not in small else {}
    none = [None] * len(rows)
    columns: list[list[Any]] = []
    for field in fields:
        if field in IN_ATTEMPTS:
            at = of_attempts.index(field)
            columns.append([ended[job][at] if (job := row["id"]) in ended else None for row in rows] if ended else none)
        elif field == "parents":
            columns.append([[] for _ in rows] if field in small else _read_parents(tx, [row["id"] for row in rows]))
        elif field in small:
            reference, values = _REFERENCE_OF[field], small[field]
            columns.append([values[row[reference]] for row in rows])
        elif field in DEFAULT_FOR_NULL:
            default = DEFAULT_FOR_NULL[field]
            columns.append([default if (value := row[field]) is None else value for row in rows])
        elif field in DOCUMENTS:
            empty = DOCUMENTS[field]
            columns.append([empty() if (value := row[field]) is None else value for row in rows])
        else:
            columns.append([row[field] for row in rows])
    return [list(values) for values in zip(*columns, strict=True)] if columns else [[] for _ in rows]


def _read_small_tables(tx: Tx, fields: Sequence[str], rows: Sequence[Mapping[Any, Any]]) -> KnownValues:
    """Return the values, by id, of the fields that come from small tables."""
    found: KnownValues = {}
    for table, reference in REFERENCES.items():
        of_table = tuple(field for field in fields if _REFERENCE_OF.get(field) == reference)
        if of_table:
            found.update((field, {None: ""}) for field in of_table)
            for some in in_chunks({row[reference] for row in rows} - {None}):
                for row_id, *values in tx.run_prepared(*_small_table_query(table, of_table).fill(some)).fetchall():
                    for field, value in zip(of_table, values, strict=True):
                        found[field][row_id] = value
    return found


@lru_cache(maxsize=100)
def _small_table_query(table: str, fields: tuple[str, ...]) -> PreparedList:
    row_id = jobs.metadata.tables[table].c.id
    wanted = [IN_SMALL_TABLE[field] for field in fields]
    return PreparedList(lambda ids: select(row_id, *wanted).where(row_id.in_(ids)))


def _read_attempts(tx: Tx, fields: Sequence[str], rows: Sequence[Mapping[Any, Any]]) -> dict[int, Sequence[Any]]:
    """Return fields of the last attempt of each job for which it has ended."""
    wanted = [IN_ATTEMPTS[field] for field in fields]
    ours = and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == jobs.c.attempt)
    found: dict[int, Sequence[Any]] = {}
    for some in in_chunks(row["id"] for row in rows if row["attempt"]):
        query = select(jobs.c.id, *wanted).join(attempts, ours).where(jobs.c.id.in_(some))
        found.update((row[0], row[1:]) for row in tx.execute(query))
    return found


def _read_parents(tx: Tx, ids: Sequence[int]) -> list[list[int]]:
    parents: dict[int, list[int]] = {job: [] for job in ids}
    for some in in_chunks(ids):
        for child, parent in tx.run_prepared(*_EDGES.fill(some)).fetchall():
            parents[child].append(parent)
    return [parents[job] for job in ids]


_EDGES = PreparedList(
    lambda ids: (
        select(job_edges.c.child_id, job_edges.c.parent_id)
        .where(job_edges.c.child_id.in_(ids))
        .order_by(job_edges.c.parent_id)
    )
)


def delete_jobs(tx: Tx, ids: Iterable[int]) -> None:
    """Delete jobs with their dependencies and their history."""
    for some in in_chunks(ids):
        tx.execute(delete(job_edges).where(or_(job_edges.c.child_id.in_(some), job_edges.c.parent_id.in_(some))))
        tx.execute(delete(job_events).where(job_events.c.job_id.in_(some)))
        tx.execute(delete(attempts).where(attempts.c.job_id.in_(some)))
        tx.execute(delete(jobs).where(jobs.c.id.in_(some)))
