"""Command templates: split into words first, then filled, so that a parameter can never inject a word.

``{name}`` is a placeholder where ``name`` is a Python identifier; all other braces stay as they are.
"""

from __future__ import annotations

import re
import shlex
from functools import lru_cache
from typing import TYPE_CHECKING

from balsam_core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def split(text: str, *, what: str) -> list[str]:
    """Return the words of a command line in POSIX shell quoting; nothing is expanded.

    Raises:
        InvalidInput: A quotation is not closed; the message begins with ``what``.
    """
    try:
        return list(_split_cached(text))
    except ValueError as err:
        raise InvalidInput(f"{what}: can't split {text!r} into words ({err}); close the quotation") from None


@lru_cache(maxsize=1024)  # the jobs of an ensemble have few different command lines
def _split_cached(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


def placeholders(words: Sequence[str]) -> set[str]:
    """Return the names of the parameters that the words ask for."""
    return {name for word in words for name in _PLACEHOLDER.findall(word)}


def fill(words: Sequence[str], parameters: Mapping[str, object], *, what: str) -> list[str]:
    """Return the words with each ``{name}`` replaced by its parameter's text.

    Raises:
        InvalidInput: A placeholder has no parameter.
    """

    def value(match: re.Match[str]) -> str:
        try:
            found = parameters[match[1]]
        except KeyError:
            have = ", ".join(sorted(parameters)) or "none"
            raise InvalidInput(f"{what}: parameter {match[1]!r} is missing (given: {have})") from None
        return found if isinstance(found, str) else str(found)

    return [_PLACEHOLDER.sub(value, word) for word in words]
