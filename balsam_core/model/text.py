"""Checks of text and documents that every database can store and every system call can take.

Messages name the field; the caller puts the name of the job or app before them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from balsam_core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

LONGEST_TEXT = 1_000_000  # characters
MAX_DEPTH = 32  # levels of nesting in a document


def title(kind: str, name: str) -> str:
    """Return a job or app as messages name it, e.g. ``job 'a'``; a long name is cut."""
    return f"{kind} {shortened(name)}" if name else f"the {kind} without a name"


def shortened(value: object) -> str:
    """Return a value as messages show it; what is long is cut."""
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."  # noqa: PLR2004


def still_needed(parent: int, children: Sequence[int]) -> str:
    """Return the message about a job that can't be removed without its children."""
    names = ", ".join(map(str, children))
    return f"job {parent} can't be removed, since its children {names} have not finished and need it"


def typed(value: object) -> str:
    """Return a value with its type, as messages show what has the wrong type."""
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{shortened(value)} of type {module}{kind.__qualname__}"


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
        raise InvalidInput(f"{field} holds a value of type {kind.__name__}; {_instead_of(value)}")


def _instead_of(value: object) -> str:
    if isinstance(value, (set, frozenset)):
        return "a set has no order: give a list, such as sorted(...)"
    if hasattr(value, "tolist"):
        return "of a NumPy value or array give value.tolist()"
    return "use text, numbers, lists and dictionaries"


def holds_set(value: object, depth: int = 0) -> bool:
    """Say whether a value that can be sent is or holds a set, which would come in any order."""
    kind = type(value)
    if kind is not dict and kind is not list and kind is not tuple:
        return isinstance(value, (set, frozenset))
    if depth > MAX_DEPTH:  # refused where it is stored
        return False
    items: Collection[object] = value.values() if kind is dict else value  # type: ignore[assignment, attr-defined]
    if _SCALARS.issuperset(map(type, items)):  # nearly always
        return False
    return any(holds_set(item, depth + 1) for item in items)


_SCALARS = frozenset({str, int, float, bool, type(None)})


def _check_keys(field: str, document: Mapping[object, object]) -> None:
    for key in document:
        if not isinstance(key, str):
            raise InvalidInput(f"{field} has the key {key!r}; keys must be text")
        check_text(f"key of {field}", key)


def check_patterns(field: str, patterns: Sequence[str]) -> None:
    """Raise InvalidInput for patterns of file names that can't match a name in a working directory."""
    check_document(field, patterns)
    for pattern in patterns:
        if "/" in pattern:
            raise InvalidInput(
                f"{field}: the pattern {pattern!r} holds a slash; patterns match names in the working directory"
            )


def check_path(field: str, path: str) -> None:
    """Raise InvalidInput for a path that means another file in each process: a relative one."""
    check_text(field, path)
    if path and not path.startswith(("/", "~")):
        raise InvalidInput(f"{field}: {path!r} is no absolute path; write it in full")


def check_environ(_field: str, environ: Mapping[str, str]) -> None:
    """Raise InvalidInput for environment variables that no process could be given."""
    for name, value in environ.items():
        if not isinstance(name, str):
            raise InvalidInput(f"{name!r} can't name an environment variable: it is no text")
        if not isinstance(value, str):
            raise InvalidInput(f"environment variable {name} has the value {shortened(value)}, which is no text")
        check_text("name of an environment variable", name, empty=False)
        check_text(f"environment variable {name}", value)
        if "=" in name:
            raise InvalidInput(f"{name!r} can't name an environment variable: it holds '='")
