"""Conditions on jobs as plain data: ``Job.state.in_(["FAILED"]) & (Job.priority > 3)``.

A filter is data that travels in a call; the operations translate it to SQL. It names only fields of
:class:`~balsam_core.model.job.Job`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        return Compare(self.name, "eq", value)

    def __ne__(self, value: object) -> Compare:  # type: ignore[override]
        return Compare(self.name, "ne", value)

    def __lt__(self, value: object) -> Compare:
        return Compare(self.name, "lt", value)

    def __le__(self, value: object) -> Compare:
        return Compare(self.name, "le", value)

    def __gt__(self, value: object) -> Compare:
        return Compare(self.name, "gt", value)

    def __ge__(self, value: object) -> Compare:
        return Compare(self.name, "ge", value)

    def in_(self, values: Iterable[object]) -> Compare:
        """True where the field equals one of the values."""
        return Compare(self.name, "in", list(values))

    def contains(self, text: str) -> Compare:
        """True where the field's text holds ``text``, in the same case."""
        return Compare(self.name, "contains", text)

    def startswith(self, text: str) -> Compare:
        """True where the field's text begins with ``text``, in the same case."""
        return Compare(self.name, "startswith", text)
