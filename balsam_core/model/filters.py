"""Conditions on jobs as plain data: ``Job.state.in_(["FAILED"]) & (Job.priority > 3)``.

A filter is data that travels in a call; the operations translate it to SQL. It names only fields of
:class:`~balsam_core.model.job.Job`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

import msgspec

from balsam_core.errors import InvalidInput
from balsam_core.model.states import State
from balsam_core.model.text import shortened, typed

Operator = Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "contains", "startswith"]


class _Combinable:
    """The operators ``&``, ``|`` and ``~`` on conditions."""

    __slots__ = ()

    def __and__(self, other: Condition) -> AllOf:
        return AllOf(parts=[self, other])  # type: ignore[list-item]

    def __or__(self, other: Condition) -> AnyOf:
        return AnyOf(parts=[self, other])  # type: ignore[list-item]

    def __invert__(self) -> NoneOf:
        return NoneOf(parts=[self])  # type: ignore[list-item]

    def __bool__(self) -> bool:
        raise TypeError("a condition has no truth value: combine conditions with & | ~ instead of and / or / not")


class Compare(_Combinable, msgspec.Struct, frozen=True, tag="compare", forbid_unknown_fields=True):
    """One field compared with one value (a list for ``in``)."""

    field: str
    op: Operator
    value: Any


class AllOf(_Combinable, msgspec.Struct, frozen=True, tag="all", forbid_unknown_fields=True):
    """True where every part is; an empty one is always true."""

    parts: list[Compare | AllOf | AnyOf | NoneOf]


class AnyOf(_Combinable, msgspec.Struct, frozen=True, tag="any", forbid_unknown_fields=True):
    """True where at least one part is."""

    parts: list[Compare | AllOf | AnyOf | NoneOf]


class NoneOf(_Combinable, msgspec.Struct, frozen=True, tag="none", forbid_unknown_fields=True):
    """True where no part is."""

    parts: list[Compare | AllOf | AnyOf | NoneOf]


Condition = Compare | AllOf | AnyOf | NoneOf


def compared(field: str, op: Operator, value: object) -> Compare:
    """Return a comparison of a field with a value, for ``in`` with an iterable of values.

    Raises:
        InvalidInput: It is no value that a field could have.
    """
    if op != "in":
        _check_value(field, value)
        return Compare(field, op, value)
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise InvalidInput(f"{field}: in_() takes a list of values, not {shortened(value)}")
    values = list(value)
    for one in values:
        if type(one) is not str and not (type(one) is int and 0 <= one < 2**63):  # most are ids
            _check_value(field, one)
    return Compare(field, op, values)


def _check_value(field: str, value: object) -> None:
    if isinstance(value, (list, tuple, set, frozenset)):
        raise InvalidInput(f"{field} can't be compared with {shortened(value)}; for one of several values use in_()")
    if isinstance(value, datetime) and value.tzinfo is None:
        raise InvalidInput(f"{field} can't be compared with {value!r}, which has no time zone; give it one (tzinfo)")
    if value is not None and type(value) not in _SENT and not isinstance(value, (State, datetime)):
        raise InvalidInput(f"{field} can't be compared with {typed(value)}; give text, an int, a float or a datetime")
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise InvalidInput(f"{field} can't be compared with {value}, which no 64-bit integer can be")


_SENT = frozenset({str, int, float, bool, dict})  # a dict is refused with its field


class Column:
    """A field of a job class, used to build conditions; on an instance it gives the instance's value."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str, slot: Any) -> None:  # noqa: ANN401  (the slot descriptor of a C type)
        self.name = name
        self._slot = slot

    def __get__(self, instance: object, owner: type | None = None) -> Any:  # noqa: ANN401
        return self if instance is None else self._slot.__get__(instance, owner)

    def __set__(self, instance: object, value: object) -> None:
        self._slot.__set__(instance, value)

    def __repr__(self) -> str:
        return f"Job.{self.name}"

    def __eq__(self, value: object) -> Compare:  # type: ignore[override]
        return compared(self.name, "eq", value)

    def __ne__(self, value: object) -> Compare:  # type: ignore[override]
        return compared(self.name, "ne", value)

    def __lt__(self, value: object) -> Compare:
        return compared(self.name, "lt", value)

    def __le__(self, value: object) -> Compare:
        return compared(self.name, "le", value)

    def __gt__(self, value: object) -> Compare:
        return compared(self.name, "gt", value)

    def __ge__(self, value: object) -> Compare:
        return compared(self.name, "ge", value)

    def in_(self, values: Iterable[object]) -> Compare:
        """True where the field equals one of the values."""
        return compared(self.name, "in", values)

    def contains(self, text: str) -> Compare:
        """True where the field's text holds ``text``, in the same case."""
        return compared(self.name, "contains", text)

    def startswith(self, text: str) -> Compare:
        """True where the field's text begins with ``text``, in the same case."""
        return compared(self.name, "startswith", text)
