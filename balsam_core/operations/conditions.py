"""Conditions on jobs, and their order, as SQL."""

from __future__ import annotations

import operator
from functools import cache
from typing import TYPE_CHECKING, Any

from msgspec import DecodeError, ValidationError, convert
from sqlalchemy import and_, bindparam, exists, false, func, not_, or_, select, true

from balsam_core.errors import InvalidInput
from balsam_core.model.filters import AllOf, AnyOf, Compare, NoneOf
from balsam_core.model.job import FIELDS, field_infos
from balsam_core.model.states import State
from balsam_core.model.text import shortened
from balsam_core.operations.stored_fields import DEFAULT_FOR_NULL, DOCUMENTS, IN_ATTEMPTS, IN_SMALL_TABLE, REFERENCES
from balsam_core.schema.tables import attempts, jobs, staged_inserts, workflows
from balsam_core.schema.types import position

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import ColumnElement, FromClause, Select

    from balsam_core.model.calls import Order, Where

IN_LIST = 256  # values in one IN list; preparing one of 1,024 takes 40 ms
MAX_DEPTH = 25  # levels of a condition within conditions; SQL is made from it by recursion
MAX_PARAMETERS = 10_000  # values of a filter that the driver is given apart from the statement


def in_chunks(values: Iterable[int]) -> Iterable[list[int]]:
    """Split values into lists that fit one IN."""
    ordered = list(values)
    return (ordered[i : i + IN_LIST] for i in range(0, len(ordered), IN_LIST))


def in_workflow(is_named: bool) -> list[ColumnElement[bool]]:  # noqa: FBT001
    """Return the condition that a job is of the workflow of the parameter ``workflow``; none where it isn't named."""
    if not is_named:
        return []
    workflow_id = select(workflows.c.id).where(workflows.c.name == bindparam("workflow")).scalar_subquery()
    return [jobs.c.workflow_id == workflow_id]


def visible(table: FromClause = jobs) -> ColumnElement[bool]:
    """Return the condition that a job isn't part of an unpublished staged insert; costs nothing while none is open."""
    hidden = select(staged_inserts.c.id).where(not_(staged_inserts.c.published))
    return or_(not_(exists(hidden)), table.c.staged_insert_id.not_in(hidden))


def condition(where: Where, table: FromClause = jobs, depth: int = 0) -> ColumnElement[bool]:
    """Return a filter as SQL.

    Raises:
        InvalidInput: A field doesn't exist or is compared with a value of another type, or the filter is too deep.
    """
    if isinstance(where, Compare):
        return _field_condition(table, where)
    if depth > MAX_DEPTH:
        raise InvalidInput(f"a condition can't hold others more than {MAX_DEPTH} levels deep")
    parts = [condition(part, table, depth + 1) for part in _flat_parts(where)]
    if isinstance(where, AllOf):
        return and_(true(), *parts)
    if isinstance(where, AnyOf):
        return or_(false(), *parts)
    # A comparison with NULL is neither true nor false, and so is its negation.
    return not_(func.coalesce(or_(false(), *parts), false()))


def page(query: Select[Any], where: Where, order: Order, limit: int, after: int | None) -> Select[Any]:
    """Return the query narrowed to one page of visible jobs."""
    query = query.where(visible(), condition(where)).limit(limit)
    if after is not None:
        if order.field != "id" or order.descending:
            raise InvalidInput("'after' continues only in the order of ids")
        query = query.where(jobs.c.id > after)
    columns = [jobs.c.id] if order.field == "id" else [*_order_columns(order.field), jobs.c.id]
    return query.order_by(*[column.desc() if order.descending else column.asc() for column in columns])


def _order_columns(field: str) -> list[ColumnElement[Any]]:
    """Return what sorts by a field, None before all else: databases differ in where they sort NULL."""
    if field in DOCUMENTS or field == "parents" or field not in FIELDS:
        raise InvalidInput(f"jobs can't be sorted by {field!r}")
    if field in IN_SMALL_TABLE:
        column = IN_SMALL_TABLE[field]
        reference = jobs.c[REFERENCES[column.table.name]]
        value = select(column).where(column.table.c.id == reference).scalar_subquery()
        return [func.coalesce(value, "") if reference.nullable else value]
    stored = _value(jobs, field)
    if field in DEFAULT_FOR_NULL:
        return [func.coalesce(stored, DEFAULT_FOR_NULL[field])]
    return [stored.is_not(None), stored] if field in IN_ATTEMPTS or jobs.c[field].nullable else [stored]


def _value(table: FromClause, field: str) -> ColumnElement[Any]:
    """Return what holds a field: a column of the job, or one of its last attempt."""
    if field not in IN_ATTEMPTS:
        return table.c[field]
    ours = and_(attempts.c.job_id == table.c.id, attempts.c.attempt == table.c.attempt)
    return select(IN_ATTEMPTS[field]).where(ours).correlate(table).scalar_subquery()


def _flat_parts(where: AllOf | AnyOf | NoneOf) -> list[Where]:
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


def _field_condition(table: FromClause, part: Compare) -> ColumnElement[bool]:
    value = _checked_value(part)
    if part.field in IN_SMALL_TABLE:
        column = IN_SMALL_TABLE[part.field]
        reference = jobs.c[REFERENCES[column.table.name]]
        refers = table.c[reference.name]
        ids = select(column.table.c.id).where(_comparison(column, part.op, value))
        if part.op == "eq" and column.unique:  # then an index on the reference serves filter and order
            found: ColumnElement[bool] = refers == ids.scalar_subquery()
        else:
            found = refers.in_(ids)
        return or_(found, refers.is_(None)) if reference.nullable and _is_true_of_empty(part.op, value) else found
    stored = _value(table, part.field)
    if part.field in DEFAULT_FOR_NULL:
        stored = func.coalesce(stored, DEFAULT_FOR_NULL[part.field])
    return _comparison(stored, part.op, value)  # type: ignore[no-any-return]


def _checked_value(part: Compare) -> Any:  # noqa: ANN401
    """Return what a field is compared with, in the field's type.

    Raises:
        InvalidInput: The field doesn't exist, or can't be compared with this.
    """
    field, value = part.field, part.value
    if field not in FIELDS or field == "parents":
        raise InvalidInput(f"jobs can't be chosen by {field!r}; fields are: {', '.join(FIELDS)}")
    if field in DOCUMENTS:
        raise InvalidInput(f"jobs can't be chosen by {field}, which is a document")
    several: Sequence[object] = value if isinstance(value, (list, tuple)) else ()
    if any("\0" in one for one in [value, *several] if isinstance(one, str)):
        raise InvalidInput(f"{field} can't be compared with text that holds a NUL character")
    if part.op in {"contains", "startswith"}:
        if not isinstance(value, str):
            raise InvalidInput(f"{field}: {part.op} needs text, not {value!r}")
        return value
    if part.op == "in":
        if not isinstance(value, (list, tuple)):
            raise InvalidInput(f"{field}: 'in' needs a list, not {value!r}")
        return [_in_field_type(field, item) for item in value]
    value = _in_field_type(field, value)
    if value is None and part.op in _BY_SIZE:
        raise InvalidInput(f"{field} can't be compared with None by size")
    return value


def _in_field_type(field: str, value: object) -> object:
    """Return the value in the field's type, so that every database compares the same way.

    Raises:
        InvalidInput: It has another type, or names no state.
    """
    if field == "state":
        try:
            return State(str(value)).value
        except ValueError:
            raise InvalidInput(f"there is no state {shortened(value)}; states are: {', '.join(State)}") from None
    try:
        return convert(value, _field_types()[field], strict=True)
    except (ValidationError, DecodeError) as err:
        raise InvalidInput(f"{field} can't be compared with {shortened(value)}: {err}") from None


@cache
def _field_types() -> dict[str, Any]:
    return {info.name: info.type for info in field_infos()}


_BY_SIZE = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}


def _comparison(column: ColumnElement[Any], op: str, value: Any) -> Any:  # noqa: ANN401
    match op:
        case "eq":
            return column.is_(None) if value is None else column == value
        case "ne":
            return column.is_not(None) if value is None else or_(column != value, column.is_(None))
        case "in":
            among = _among(column, [one for one in value if one is not None])
            return or_(among, column.is_(None)) if None in value else among
        case "contains":
            # LIKE folds case on SQLite; a position in the text does not.
            return position(column, value) > 0
        case "startswith":
            return func.substr(column, 1, len(value)) == value
        case _:
            return _BY_SIZE[op](column, value)


def _among(column: ColumnElement[Any], values: list[Any]) -> ColumnElement[bool]:
    if len(values) <= MAX_PARAMETERS:
        return column.in_(values)
    if not all(type(one) is int for one in values):
        raise InvalidInput(
            f"jobs can't be chosen by more than {MAX_PARAMETERS} values at once; there are {len(values)}"
        )
    return column.in_(bindparam(None, values, expanding=True, literal_execute=True))


def _is_true_of_empty(op: str, value: Any) -> bool:  # noqa: ANN401
    """Say whether a comparison is true of the empty text, which a reference that is NULL stands for."""
    if op in _BY_SIZE:
        return bool(_BY_SIZE[op]("", value))
    if op == "in":
        return "" in value
    return bool(value != "") if op == "ne" else bool(value == "")  # eq, contains, startswith
