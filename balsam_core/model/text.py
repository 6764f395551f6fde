"""Checks of text and documents that every database can store and every system call can take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from balsam_core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LONGEST_TEXT", "check_document", "check_environ", "check_text"]

LONGEST_TEXT = 1_000_000  # characters
DEEPEST = 32  # levels of nesting in a document


def check_text(what: str, field: str, value: str, *, longest: int = LONGEST_TEXT, empty: bool = True) -> None:
    """Raise InvalidInput for text that no database or system call could take.

    Args:
        what: The thing in words, for the message, e.g. ``job 'a'``.
        field: The field in words.
        value: The text.
        longest: The most characters allowed.
        empty: Whether the empty text is allowed.
    """
    if not empty and not value:
        msg = f"{what}: the {field} is empty"
        raise InvalidInput(msg)
    if len(value) > longest:
        msg = f"{what[:80]}: the {field} has {len(value)} characters; at most {longest} are allowed"
        raise InvalidInput(msg)
    if "\0" in value:
        msg = f"{what}: the {field} holds a NUL character; remove it"
        raise InvalidInput(msg)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            msg = f"{what}: the {field} is not valid Unicode text (a lone surrogate); use UTF-8"
            raise InvalidInput(msg) from None


def check_document(what: str, field: str, value: object, *, depth: int = 0) -> None:
    """Raise InvalidInput for a document that would not come back from every database as it went in."""
    kind = type(value)
    if kind is str:
        check_text(what, field, value)  # type: ignore[arg-type]
    elif kind is int:
        if not -(2**63) <= value < 2**63:  # type: ignore[operator]
            msg = f"{what}: {field} holds {value}, which no 64-bit integer can; store it as text"
            raise InvalidInput(msg)
    elif kind is float:
        if not math.isfinite(value):  # type: ignore[arg-type]
            msg = f"{what}: {field} holds {value}, which JSON can't; use None or text"
            raise InvalidInput(msg)
    elif isinstance(value, (dict, list, tuple)):
        if depth == DEEPEST:
            msg = f"{what}: {field} is nested more than {DEEPEST} levels deep"
            raise InvalidInput(msg)
        if isinstance(value, dict):
            _check_keys(what, field, value)
        for item in value.values() if isinstance(value, dict) else value:
            check_document(what, field, item, depth=depth + 1)
    elif not (value is None or kind is bool):
        msg = f"{what}: {field} holds a value of type {kind.__name__}; use text, numbers, lists and dictionaries"
        raise InvalidInput(msg)


def _check_keys(what: str, field: str, document: Mapping[object, object]) -> None:
    for key in document:
        if not isinstance(key, str):
            msg = f"{what}: {field} has the key {key!r}; keys must be text"
            raise InvalidInput(msg)
        check_text(what, f"key of {field}", key)


def check_environ(what: str, environ: Mapping[str, str]) -> None:
    """Raise InvalidInput for environment variables that no process could be given."""
    for name, value in environ.items():
        check_text(what, "name of an environment variable", name, empty=False)
        check_text(what, f"environment variable {name}", value)
        if "=" in name:
            msg = f"{what}: {name!r} can't name an environment variable: it holds '='"
            raise InvalidInput(msg)
