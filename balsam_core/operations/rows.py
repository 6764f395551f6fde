"""Between jobs as users see them and rows as they are stored: fields, conditions, visibility."""

from __future__ import annotations

from datetime import datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, cast

from msgspec import DecodeError, ValidationError, convert
from sqlalchemy import and_, bindparam, exists, false, func, not_, or_, select, true

from balsam_core.errors import InvalidInput
from balsam_core.model.filters import AllOf, AnyOf, Compare, NoneOf
from balsam_core.model.job import FIELDS, Job
from balsam_core.model.states import State
from balsam_core.operations.dimensions import RESOURCES
from balsam_core.schema.prepared import PreparedList
from balsam_core.schema.tables import apps, job_edges, jobs, resource_classes, staged_inserts, workflows
from balsam_core.schema.types import JSONDocument, position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, FromClause, Select

    from balsam_core.model.calls import Order, Where
    from balsam_core.operations.execution import Tx

__all__ = [
    "DOCUMENTS",
    "OPTIONAL_TEXTS",
    "WHOLE",
    "condition",
    "in_chunks",
    "jobs_of",
    "page",
    "read_jobs",
    "read_rows",
    "visible",
]

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
DEEPEST = 25  # levels of a condition within conditions; SQL is made from it by recursion
MOST_PARAMETERS = 10_000  # values of a filter that the driver is given apart from the statement


def in_chunks(values: Iterable[int]) -> Iterable[list[int]]:
    """Split values into lists that fit one IN."""
    ordered = list(values)
    return (ordered[i : i + IN_LIST] for i in range(0, len(ordered), IN_LIST))


def visible(table: FromClause = jobs) -> ColumnElement[bool]:
    """Return the condition that a job isn't part of an unpublished staged insert; costs nothing while none is open."""
    hidden = select(staged_inserts.c.id).where(not_(staged_inserts.c.published))
    return or_(not_(exists(hidden)), table.c.staged_insert_id.not_in(hidden))


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
            among = _among(column, [one for one in value if one is not None])
            return or_(among, column.is_(None)) if None in value else among
        case "contains":
            # LIKE folds case on SQLite; a position in the text does not.
            return position(column, value) > 0
        case _:
            return func.substr(column, 1, len(value)) == value


def _among(column: ColumnElement[Any], values: list[Any]) -> ColumnElement[bool]:
    if len(values) <= MOST_PARAMETERS:
        return column.in_(values)
    if not all(type(one) is int for one in values):
        msg = f"jobs can't be chosen by more than {MOST_PARAMETERS} values at once; there are {len(values)}"
        raise InvalidInput(msg)
    return column.in_(bindparam(None, values, expanding=True, literal_execute=True))


def _holds_for_nothing(op: str, value: Any) -> bool:  # noqa: ANN401
    """Say whether a comparison is true of the empty text."""
    match op:
        case "ne":
            return bool(value != "")
        case "lt":
            return bool(value > "")
        case "in":
            return "" in value
        case "le":
            return True
        case "gt":
            return False
        case _:  # eq, ge, contains, startswith
            return bool(value == "")


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, (list, tuple)) else ()


def _simple(table: FromClause, part: Compare) -> ColumnElement[bool]:
    if part.field not in _DEFAULTS or part.field == "parents":
        msg = f"jobs can't be chosen by {part.field!r}; fields are: {', '.join(FIELDS)}"
        raise InvalidInput(msg)
    if part.field in DOCUMENTS:
        msg = f"jobs can't be chosen by {part.field}, which is a document"
        raise InvalidInput(msg)
    if any("\0" in one for one in [part.value, *_items(part.value)] if isinstance(one, str)):
        msg = f"{part.field} can't be compared with text that holds a NUL character"
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
        if value is None and part.op in {"lt", "le", "gt", "ge"}:
            msg = f"{part.field} can't be compared with None by size"
            raise InvalidInput(msg)
    if part.field == "workflow":
        inner = select(workflows.c.id).where(_compare(workflows.c.name, part.op, value))
        return table.c.workflow_id == inner.scalar_subquery() if part.op == "eq" else table.c.workflow_id.in_(inner)
    if part.field == "app":
        some = table.c.app_id.in_(select(apps.c.id).where(_compare(apps.c.name, part.op, value)))
        return or_(some, table.c.app_id.is_(None)) if _holds_for_nothing(part.op, value) else some
    if part.field in RESOURCES:
        inner = select(resource_classes.c.id).where(_compare(resource_classes.c[part.field], part.op, value))
        return table.c.resource_class_id.in_(inner)
    column: ColumnElement[Any] = table.c[part.field]
    if part.field in OPTIONAL_TEXTS:
        column = func.coalesce(column, "")
    return _compare(column, part.op, value)


def _flat(where: AllOf | AnyOf | NoneOf) -> list[Where]:
    """Return the parts of a condition; ``a & b & c`` holds one of its kind in another."""
    flat: list[Where] = []
    waiting = list(reversed(where.parts))
    while waiting:
        part = waiting.pop()
        if type(part) is type(where) and not isinstance(part, (Compare, NoneOf)):
            waiting.extend(reversed(part.parts))
        else:
            flat.append(part)
    return flat


def condition(where: Where, table: FromClause = jobs, depth: int = 0) -> ColumnElement[bool]:
    """Return a filter as SQL.

    Raises:
        InvalidInput: A field doesn't exist or is compared with a value of another type, or the filter is too deep.
    """
    if isinstance(where, Compare):
        return _simple(table, where)
    if depth > DEEPEST:
        msg = f"a condition can't hold others more than {DEEPEST} levels deep"
        raise InvalidInput(msg)
    parts = [condition(part, table, depth + 1) for part in _flat(where)]
    if isinstance(where, AllOf):
        return and_(true(), *parts)
    if isinstance(where, AnyOf):
        return or_(false(), *parts)
    # What compares with NULL is neither true nor false, and its opposite would be neither, too.
    return not_(func.coalesce(or_(false(), *parts), false()))


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


_REFERS = {"workflows": "workflow_id", "apps": "app_id", "resource_classes": "resource_class_id"}
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
    return _fields_of(tx, fields, found) if found else []


Known = dict[str, dict[int | None, Any]]
"""Values by id of fields that come from small tables; "parents" there: the jobs have none."""


def _fields_of(
    tx: Tx, fields: Sequence[str], found: Sequence[Mapping[Any, Any]], known: Known | None = None
) -> list[list[Any]]:
    """Return fields of jobs, of which the rows are given."""
    small: Known = dict(known or {})
    small.update(_small_values(tx, [field for field in fields if field not in small], found))
    columns = []
    for field in fields:
        if field == "parents":
            columns.append([[] for _ in found] if field in small else _parents(tx, [row["id"] for row in found]))
        elif field in small:
            refers, values = _DIMENSION[field], small[field]
            columns.append([values[row[refers]] for row in found])
        elif field in OPTIONAL_TEXTS:
            default = _DEFAULTS[field]
            columns.append([default if (value := row[field]) is None else value for row in found])
        elif field in DOCUMENTS:
            new = list if field.endswith("files") else dict
            columns.append([new() if (value := row[field]) is None else value for row in found])
        else:
            columns.append([row[field] for row in found])
    return [list(values) for values in zip(*columns, strict=True)] if columns else [[] for _ in found]


def _small_values(
    tx: Tx, fields: Sequence[str], found: Sequence[Mapping[Any, Any]]
) -> dict[str, dict[int | None, Any]]:
    """Return the values, by id, of the fields that come from small tables."""
    small: dict[str, dict[int | None, Any]] = {}
    for table, refers in _REFERS.items():
        of_table = tuple(field for field in fields if _DIMENSION.get(field) == refers)
        if of_table:
            small.update((field, {None: ""}) for field in of_table)
            for some in in_chunks({row[refers] for row in found} - {None}):
                for number, *values in tx.run(*_small_query(table, of_table).fill(some)).all():
                    for field, value in zip(of_table, values, strict=True):
                        small[field][number] = value
    return small


@lru_cache(maxsize=100)
def _small_query(table: str, fields: tuple[str, ...]) -> PreparedList:
    columns = jobs.metadata.tables[table].c
    wanted = [columns[field if field in RESOURCES else "name"] for field in fields]
    return PreparedList(lambda ids: select(columns.id, *wanted).where(columns.id.in_(ids)))


def _parents(tx: Tx, ids: Sequence[int]) -> list[list[int]]:
    parents: dict[int, list[int]] = {number: [] for number in ids}
    for some in in_chunks(ids):
        for child, parent in tx.run(*_EDGES.fill(some)).all():
            parents[child].append(parent)
    return [parents[number] for number in ids]


_EDGES = PreparedList(
    lambda ids: (
        select(job_edges.c.child_id, job_edges.c.parent_id)
        .where(job_edges.c.child_id.in_(ids))
        .order_by(job_edges.c.parent_id)
    )
)


def read_jobs(tx: Tx, narrow: Callable[[Select[Any]], Select[Any]]) -> list[Job]:
    """Read whole jobs."""
    return jobs_of(tx, tx.execute(narrow(select(*WHOLE))).mappings().all())


def jobs_of(tx: Tx, found: Sequence[Mapping[Any, Any]], known: Known | None = None) -> list[Job]:
    """Return jobs, of which the rows are given with the columns :data:`WHOLE`."""
    rows = _fields_of(tx, FIELDS, found, known) if found else []
    state = FIELDS.index("state")
    for row in rows:
        row[state] = State(row[state])
    return [Job(**dict(zip(FIELDS, row, strict=True))) for row in rows]


WHOLE = _columns(FIELDS)
assert all(isinstance(jobs.c[name].type, JSONDocument) for name in DOCUMENTS)  # noqa: S101  (a typo here would lose data)
