"""Between jobs as users see them and rows as they are stored: fields, conditions, visibility."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from msgspec import DecodeError, ValidationError, convert
from sqlalchemy import and_, exists, false, func, not_, or_, select, true

from balsam_core.errors import InvalidInput
from balsam_core.model.filters import AllOf, AnyOf, Compare
from balsam_core.model.job import FIELDS, Job
from balsam_core.model.states import State
from balsam_core.operations.dimensions import RESOURCES
from balsam_core.schema.tables import apps, batches, job_edges, jobs, resource_classes, workflows
from balsam_core.schema.types import Document, position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import ColumnElement, FromClause, Select

    from balsam_core.model.calls import Order, Where
    from balsam_core.operations.execution import Tx

__all__ = ["DOCUMENTS", "OPTIONAL_TEXTS", "condition", "in_chunks", "page", "read_jobs", "read_rows", "visible"]

OPTIONAL_TEXTS = (
    "description",
    "args",
    "command",
    "stage_in",
    "stage_out",
    "user_workdir",
    "preprocess",
    "postprocess",
    "cpu_affinity",
)
"""Text fields that are stored as NULL where they are empty."""

DOCUMENTS = ("parameters", "input_files", "stage_out_files", "environ", "data")
"""JSON fields that are stored as NULL where they are empty."""

IN_LIST = 1000  # values in one IN list


def in_chunks(values: Iterable[int]) -> Iterable[list[int]]:
    """Split values into lists that fit one IN."""
    ordered = list(values)
    return (ordered[i : i + IN_LIST] for i in range(0, len(ordered), IN_LIST))


def visible(table: FromClause = jobs) -> ColumnElement[bool]:
    """Return the condition that a job isn't part of an unpublished batch; costs nothing while none is open."""
    hidden = select(batches.c.id).where(not_(batches.c.published))
    return or_(not_(exists(hidden)), table.c.batch_id.not_in(hidden))


# ---- conditions


_DEFAULTS = dict(zip(FIELDS, Job.__struct_defaults__, strict=True))


@cache
def _field_type(field: str) -> Any:  # noqa: ANN401
    from msgspec.structs import fields

    return next(info.type for info in fields(Job) if info.name == field)


def _value(field: str, value: object) -> object:
    """Return the value in the field's type, so that every database compares the same way.

    Raises:
        InvalidInput: It has another type, or names no state.
    """
    if field == "state":
        try:
            return State(str(value)).value
        except ValueError:
            msg = f"there is no state {value!r}; states are: {', '.join(State)}"
            raise InvalidInput(msg) from None
    if isinstance(value, datetime):
        return value
    try:
        kind = _field_type(field)
        return convert(value, kind, strict=True)
    except (ValidationError, DecodeError) as err:
        msg = f"{field} can't be compared with {value!r}: {err}"
        raise InvalidInput(msg) from None


def _compare(column: ColumnElement[Any], op: str, value: Any) -> ColumnElement[bool]:  # noqa: ANN401
    return cast("ColumnElement[bool]", _comparison(column, op, value))


def _comparison(column: ColumnElement[Any], op: str, value: Any) -> Any:  # noqa: ANN401, PLR0911
    match op:
        case "eq":
            return column.is_(None) if value is None else column == value
        case "ne":
            return column.is_not(None) if value is None else or_(column != value, column.is_(None))
        case "lt":
            return column < value
        case "le":
            return column <= value
        case "gt":
            return column > value
        case "ge":
            return column >= value
        case "in":
            return column.in_(value)
        case "contains":
            # LIKE folds case on SQLite; a position in the text does not.
            return _position(column, value) > 0
        case _:
            return func.substr(column, 1, len(value)) == value


def _position(column: ColumnElement[Any], text: str) -> ColumnElement[int]:

    return position(column, text)


def _simple(table: FromClause, part: Compare) -> ColumnElement[bool]:
    if part.field not in _DEFAULTS or part.field == "parents":
        msg = f"jobs can't be chosen by {part.field!r}; fields are: {', '.join(FIELDS)}"
        raise InvalidInput(msg)
    if part.field in DOCUMENTS:
        msg = f"jobs can't be chosen by {part.field}, which is a document"
        raise InvalidInput(msg)
    text_op = part.op in {"contains", "startswith"}
    if text_op and not isinstance(part.value, str):
        msg = f"{part.field}: {part.op} needs text, not {part.value!r}"
        raise InvalidInput(msg)
    if part.op == "in":
        if not isinstance(part.value, (list, tuple)):
            msg = f"{part.field}: 'in' needs a list, not {part.value!r}"
            raise InvalidInput(msg)
        value: Any = [_value(part.field, item) for item in part.value]
    else:
        value = part.value if text_op else _value(part.field, part.value)
    if part.field == "workflow":
        inner = select(workflows.c.id).where(_compare(workflows.c.name, part.op, value))
        return table.c.workflow_id == inner.scalar_subquery() if part.op == "eq" else table.c.workflow_id.in_(inner)
    if part.field == "app":
        return table.c.app_id.in_(select(apps.c.id).where(_compare(apps.c.name, part.op, value)))
    if part.field in RESOURCES:
        inner = select(resource_classes.c.id).where(_compare(resource_classes.c[part.field], part.op, value))
        return table.c.resource_class_id.in_(inner)
    column: ColumnElement[Any] = table.c[part.field]
    if part.field in OPTIONAL_TEXTS:
        column = func.coalesce(column, "")
    return _compare(column, part.op, value)


def condition(where: Where, table: FromClause = jobs) -> ColumnElement[bool]:
    """Return a filter as SQL.

    Raises:
        InvalidInput: A field doesn't exist or is compared with a value of another type.
    """
    if isinstance(where, Compare):
        return _simple(table, where)
    parts = [condition(part, table) for part in where.parts]
    if isinstance(where, AllOf):
        return and_(true(), *parts)
    if isinstance(where, AnyOf):
        return or_(false(), *parts)
    return not_(or_(false(), *parts))


# ---- reading


def page(query: Select[Any], where: Where, order: Order, limit: int, after: int | None) -> Select[Any]:
    """Return the query narrowed to one page of visible jobs."""
    query = query.where(visible(), condition(where)).limit(limit)
    if after is not None:
        if order.field != "id" or order.descending:
            msg = "'after' continues only in the order of ids"
            raise InvalidInput(msg)
        query = query.where(jobs.c.id > after)
    if order.field != "id":
        column = _order_column(order.field)
        query = query.order_by(column.desc() if order.descending else column.asc())
    return query.order_by(jobs.c.id.desc() if order.descending else jobs.c.id.asc())


def _order_column(field: str) -> ColumnElement[Any]:
    if field == "workflow":
        return select(workflows.c.name).where(workflows.c.id == jobs.c.workflow_id).scalar_subquery()
    if field == "app":
        return select(apps.c.name).where(apps.c.id == jobs.c.app_id).scalar_subquery()
    if field in RESOURCES:
        inner = select(resource_classes.c[field]).where(resource_classes.c.id == jobs.c.resource_class_id)
        return inner.scalar_subquery()
    if field in DOCUMENTS or field == "parents" or field not in _DEFAULTS:
        msg = f"jobs can't be sorted by {field!r}"
        raise InvalidInput(msg)
    column: ColumnElement[Any] = jobs.c[field]
    return column


_DIMENSION = {"workflow": "workflow_id", "app": "app_id"} | dict.fromkeys(RESOURCES, "resource_class_id")
"""Fields that come from a small table, and the column that refers to it."""


def _columns(fields: Sequence[str]) -> list[ColumnElement[Any]]:
    names = dict.fromkeys(["id", *(_DIMENSION.get(field, field) for field in fields if field != "parents")])
    return [jobs.c[name] for name in names]


def read_rows(tx: Tx, fields: Sequence[str], narrow: Callable[[Select[Any]], Select[Any]]) -> list[list[Any]]:
    """Read fields of jobs.

    Args:
        tx: The transaction.
        fields: Names of job fields.
        narrow: Adds conditions, order and limit to a query on ``jobs``.

    Raises:
        InvalidInput: A field doesn't exist.
    """
    for field in fields:
        if field not in _DEFAULTS:
            msg = f"a job has no field {field!r}; fields are: {', '.join(FIELDS)}"
            raise InvalidInput(msg)
    found = tx.execute(narrow(select(*_columns(fields)))).mappings().all()
    if not found:
        return []
    columns = [_column_values(tx, field, found) for field in fields]
    return [list(values) for values in zip(*columns, strict=True)] if columns else [[] for _ in found]


def _column_values(tx: Tx, field: str, found: Sequence[Any]) -> list[Any]:
    if field == "parents":
        return _parents(tx, [row["id"] for row in found])
    if field in _DIMENSION:
        refers = [row[_DIMENSION[field]] for row in found]
        table = {"workflow": workflows, "app": apps}.get(field, resource_classes)
        column = field if field in RESOURCES else "name"
        wanted = {refer for refer in refers if refer is not None}
        values: dict[int | None, Any] = {None: ""}
        for some in in_chunks(sorted(wanted)):
            query = select(table.c.id, table.c[column]).where(table.c.id.in_(some))
            values.update((row[0], row[1]) for row in tx.execute(query))
        return [values[refer] for refer in refers]
    if field in OPTIONAL_TEXTS or field in DOCUMENTS:
        empty = _DEFAULTS[field] if field in OPTIONAL_TEXTS else [] if field.endswith("files") else {}
        return [empty if row[field] is None else row[field] for row in found]
    return [row[field] for row in found]


def _parents(tx: Tx, ids: Sequence[int]) -> list[list[int]]:
    parents: dict[int, list[int]] = {number: [] for number in ids}
    for some in in_chunks(ids):
        query = (
            select(job_edges.c.child_id, job_edges.c.parent_id)
            .where(job_edges.c.child_id.in_(some))
            .order_by(job_edges.c.parent_id)
        )
        for child, parent in tx.execute(query):
            parents[child].append(parent)
    return [parents[number] for number in ids]


def read_jobs(tx: Tx, narrow: Callable[[Select[Any]], Select[Any]]) -> list[Job]:
    """Read whole jobs."""
    rows = read_rows(tx, FIELDS, narrow)
    state = FIELDS.index("state")
    for row in rows:
        row[state] = State(row[state])
    return [Job(**dict(zip(FIELDS, row, strict=True))) for row in rows]


assert all(isinstance(jobs.c[name].type, Document) for name in DOCUMENTS)  # noqa: S101  (a typo here would lose data)
