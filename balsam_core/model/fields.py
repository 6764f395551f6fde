"""Typing of job fields: an instance gives the value, the class gives a :class:`~balsam_core.model.filters.Column`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from balsam_core.model.filters import Column

T = TypeVar("T")

if TYPE_CHECKING:

    class Field(Protocol, Generic[T]):
        """What a type checker sees of a field; at run time it is just ``T``."""

        @overload
        def __get__(self, instance: None, owner: object) -> Column: ...
        @overload
        def __get__(self, instance: object, owner: object) -> T: ...
        def __set__(self, instance: object, value: T) -> None: ...

else:

    class Field:
        """Stands for its parameter, so that msgspec sees the plain type."""

        def __class_getitem__(cls, item: object) -> object:
            return item


def default(value: object) -> Any:  # noqa: ANN401  (a default's type is its field's)
    """Give a field its default value."""
    return value
