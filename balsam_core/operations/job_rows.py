"""Rows of jobs: which columns are read, what the small tables and the dependencies add, and how they are deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from msgspec import NODEFAULT
from sqlalchemy import and_, delete, or_, select

from balsam_core.errors import InvalidInput
from balsam_core.model.job import FIELDS, Job, field_infos
from balsam_core.operations.conditions import in_chunks
from balsam_core.operations.stored_fields import DEFAULT_FOR_NULL, DOCUMENTS, IN_ATTEMPTS, IN_SMALL_TABLE, REFERENCES
from balsam_core.schema.prepared import PreparedList
from balsam_core.schema.tables import attempts, job_edges, job_events, jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import ColumnElement, Row, Select

    from balsam_core.operations.execution import Tx

Columns = Mapping[str, Sequence[Any]]
"""Values of rows, by the name of the column; converting whole columns is much faster than converting single values."""

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


def columns_of(rows: Sequence[Row[*tuple[Any, ...]]]) -> Columns:
    """Return the columns of SQLAlchemy's rows; none where there is no row."""
    return dict(zip(rows[0]._fields, zip(*rows, strict=True), strict=True)) if rows else {}


def read_jobs(tx: Tx, narrow: Callable[[Select[Any]], Select[Any]]) -> list[Job]:
    """Read whole jobs; ``narrow`` adds conditions, order and limit to a query on ``jobs``."""
    return jobs_from_columns(tx, columns_of(tx.execute(narrow(select(*COLUMNS_OF_JOB))).all()))


def read_fields(tx: Tx, fields: Sequence[str], narrow: Callable[[Select[Any]], Select[Any]]) -> list[list[Any]]:
    """Read fields of jobs, a list of values for each job; see :func:`read_jobs`.

    Raises:
        InvalidInput: A field doesn't exist.
    """
    for field in fields:
        if field not in FIELDS:
            raise InvalidInput(f"a job has no field {field!r}; fields are: {', '.join(FIELDS)}")
    rows = tx.execute(narrow(select(*_columns_of(fields)))).all()
    if not rows or not fields:
        return [[] for _ in rows]
    return list(map(list, zip(*_field_values(tx, fields, columns_of(rows)), strict=True)))


def jobs_from_columns(tx: Tx, columns: Columns, known: KnownValues | None = None) -> list[Job]:
    """Return jobs, of which the values of :data:`COLUMNS_OF_JOB` are given."""
    if not columns:
        return []
    # Fields that all jobs leave at their default are most of them.
    given = {
        field: values
        for field, values in zip(FIELDS, _field_values(tx, FIELDS, columns, known), strict=True)
        if values.count(_DEFAULTS[field]) < len(values)
    }
    return [Job(**dict(zip(given, values, strict=True))) for values in zip(*given.values(), strict=True)]


_DEFAULTS = {
    info.name: info.default if info.default is not NODEFAULT else info.default_factory() for info in field_infos()
}


def _field_values(
    tx: Tx, fields: Sequence[str], columns: Columns, known: KnownValues | None = None
) -> list[Sequence[Any]]:
    """Return the values of each field for jobs, at least one; empty documents are one object."""
    ids = columns["id"]
    small: KnownValues = dict(known or {})
    small.update(_read_small_tables(tx, [field for field in fields if field not in small], columns))
    of_attempts = [field for field in fields if field in IN_ATTEMPTS]
    ended = _read_attempts(tx, of_attempts, columns) if of_attempts and "attempts" not in small else {}
    none = [None] * len(ids)
    found: list[Sequence[Any]] = []
    for field in fields:
        if field in IN_ATTEMPTS:
            at = of_attempts.index(field)
            found.append([ended[job][at] if job in ended else None for job in ids] if ended else none)
        elif field == "parents":
            found.append([[]] * len(ids) if field in small else _read_parents(tx, ids))
        elif field in small:
            values = small[field]
            found.append([values[reference] for reference in columns[_REFERENCE_OF[field]]])
        elif field in DEFAULT_FOR_NULL or field in DOCUMENTS:
            default = _DEFAULTS[field]
            found.append([default if value is None else value for value in columns[field]])
        else:
            found.append(columns[field])
    return found


def _read_small_tables(tx: Tx, fields: Sequence[str], columns: Columns) -> KnownValues:
    """Return the values, by id, of the fields that come from small tables."""
    found: KnownValues = {}
    for table, reference in REFERENCES.items():
        of_table = tuple(field for field in fields if _REFERENCE_OF.get(field) == reference)
        if of_table:
            found.update((field, {None: ""}) for field in of_table)
            for some in in_chunks(set(columns[reference]) - {None}):
                for row_id, *values in tx.run_prepared(*_small_table_query(table, of_table).fill(some)).fetchall():
                    for field, value in zip(of_table, values, strict=True):
                        found[field][row_id] = value
    return found


@lru_cache(maxsize=100)
def _small_table_query(table: str, fields: tuple[str, ...]) -> PreparedList:
    row_id = jobs.metadata.tables[table].c.id
    wanted = [IN_SMALL_TABLE[field] for field in fields]
    return PreparedList(lambda ids: select(row_id, *wanted).where(row_id.in_(ids)))


def _read_attempts(tx: Tx, fields: Sequence[str], columns: Columns) -> dict[int, Sequence[Any]]:
    """Return fields of the last attempt of each job for which it has ended."""
    wanted = [IN_ATTEMPTS[field] for field in fields]
    ours = and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == jobs.c.attempt)
    found: dict[int, Sequence[Any]] = {}
    for some in in_chunks(job for job, attempt in zip(columns["id"], columns["attempt"], strict=True) if attempt):
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
