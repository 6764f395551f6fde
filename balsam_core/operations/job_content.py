"""The content of jobs: what a user gives, compared with what is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from balsam_core.model.job import FIELDS, GIVEN_BY_DATABASE
from balsam_core.operations.stored_fields import DOCUMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.model.job import Job

Changes = dict[str, tuple[Any, Any]]
"""Old and new values by field."""

CONTENT = tuple(name for name in FIELDS if name not in GIVEN_BY_DATABASE and name not in {"key", "parents"})
"""The fields that are compared as they are. Parents are compared as sets of ids; the key is what both have."""

LONGEST_SHOWN = 60  # characters of a value
SHOWN_BEFORE = 15  # characters before the first difference of long values
MOST_SHOWN = 5  # changes in a message


def changed_fields(old: Job, new: Job, old_parents: set[int], new_parents: set[int]) -> Changes:
    """Return the fields in which two jobs differ; their parents are given as ids."""
    changes: Changes = {}
    before, after = old.values(), new.values()
    for values in (before, after):
        values["name"] = values["name"] or values["app"] or "job"
    for field in CONTENT:
        one, other = before[field], after[field]
        if one != other or (field in DOCUMENTS and other and _json(one) != _json(other)):  # 1 is not 1.0, nor true
            changes[field] = (one, other)
    if old_parents != new_parents:
        changes["parents"] = (sorted(old_parents), sorted(new_parents))
    return changes


def describe(changes: Changes) -> str:
    """Return changes as one short line: ``field: old -> new; field.key: old -> new``."""
    parts = list(_parts(changes))
    rest = len(parts) - MOST_SHOWN
    return "; ".join(parts[:MOST_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _parts(changes: Changes) -> Iterator[str]:
    for field, (old, new) in changes.items():
        if not isinstance(old, dict):
            yield _change(field, _json(old), _json(new))
            continue
        for key in sorted(old.keys() | new.keys()):
            before, after = (_json(values[key]) if key in values else "nothing" for values in (old, new))
            if before != after:
                yield _change(f"{field}.{key[:LONGEST_SHOWN]}", before, after)


def _change(name: str, old: str, new: str) -> str:
    start = 0
    if max(len(old), len(new)) > LONGEST_SHOWN:
        same = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        start = max(0, same - SHOWN_BEFORE)
    return f"{name}: {_cut(old, start)} -> {_cut(new, start)}"


def _cut(text: str, start: int) -> str:
    end = start + LONGEST_SHOWN
    return ("..." if start else "") + text[start:end] + ("..." if len(text) > end else "")


def _json(value: Any) -> str:  # noqa: ANN401
    return _ENCODER.encode(value).decode()


_ENCODER = msgspec.json.Encoder(order="deterministic")
