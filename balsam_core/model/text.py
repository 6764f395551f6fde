"""Checks of text and documents that every database can store and every system call can take.

Messages name the field; the caller puts the name of the job or app before them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from balsam_core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_TEXT = 1_000_000  # characters
MAX_DEPTH = 32  # levels of nesting in a document


def title(kind: str, name: str) -> str:
    """Return a job or app as messages name it, e.g. ``job 'a'``; a long name is cut."""
    if not name:
        return f"the {kind} without a name"
    return f"{kind} {name!r}" if len(name) < 80 else f"{kind} {name[:77]!r}..."  # noqa: PLR2004


def check_text(field: str, value: str, *, longest: int = LONGEST_TEXT, empty: bool = True) -> None:
    """Raise InvalidInput for text that no database or system call could take, or that is too long or empty."""
    if not empty and not value:
        raise InvalidInput(f"the {field} is empty")
    if len(value) > longest:
        raise InvalidInput(f"the {field} has {len(value)} characters; at most {longest} are allowed")
    if "\0" in value:
        raise InvalidInput(f"the {field} holds a NUL character; remove it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"the {field} is not valid Unicode text (a lone surrogate); use UTF-8") from None


def check_document(field: str, value: object, *, depth: int = 0) -> None:
    """Raise InvalidInput for a document that would not come back from every database as it went in."""
    kind = type(value)
    if kind is str:
        check_text(field, value)  # type: ignore[arg-type]
    elif kind is int:
        if not -(2**63) <= value < 2**63:  # type: ignore[operator]
            raise InvalidInput(f"{field} holds {value}, which no 64-bit integer can; store it as text")
    elif kind is float:
        if not math.isfinite(value):  # type: ignore[arg-type]
            raise InvalidInput(f"{field} holds {value}, which JSON can't; use None or text")
    elif isinstance(value, (dict, list, tuple)):
        if depth == MAX_DEPTH:
            raise InvalidInput(f"{field} is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            _check_keys(field, value)
        for item in value.values() if isinstance(value, dict) else value:
            check_document(field, item, depth=depth + 1)
    elif not (value is None or kind is bool):
        raise InvalidInput(f"{field} holds a value of type {kind.__name__}; use text, numbers, lists and dictionaries")


def _check_keys(field: str, document: Mapping[object, object]) -> None:
    for key in document:
        if not isinstance(key, str):
            raise InvalidInput(f"{field} has the key {key!r}; keys must be text")
        check_text(f"key of {field}", key)


def check_environ(_field: str, environ: Mapping[str, str]) -> None:
    """Raise InvalidInput for environment variables that no process could be given."""
    for name, value in environ.items():
        check_text("name of an environment variable", name, empty=False)
        check_text(f"environment variable {name}", value)
        if "=" in name:
            raise InvalidInput(f"{name!r} can't name an environment variable: it holds '='")
