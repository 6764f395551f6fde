"""Command templates: split into words first, then filled, so that a parameter can never inject a word.

In an app's template ``{name}`` is a placeholder where ``name`` is a Python identifier, and ``{{`` and ``}}`` stand for
single braces. In a job's own command line only the names of the job's parameters are placeholders. All other braces
stay as they are.
"""

from __future__ import annotations

import re
import shlex
import string
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from balsam_core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

RANKS_PLACEHOLDERS = ("gpus_per_rank", "nodes", "ranks", "ranks_per_node", "threads_per_core", "threads_per_rank")
"""What a command line that starts the ranks of a job may hold in braces."""

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TEMPLATE = re.compile(rf"\{{\{{|\}}\}}|{_PLACEHOLDER.pattern}")


def split(text: str, *, what: str) -> list[str]:
    """Return the words of a command line in POSIX shell quoting; nothing is expanded.

    Raises:
        InvalidInput: A quotation is not closed; the message begins with ``what``.
    """
    try:
        return list(_split_cached(text))
    except ValueError as err:
        raise InvalidInput(f"{what}: can't split {text!r} into words ({err}); close the quotation") from None


def shell_operator(text: str, filled: Container[str] | None = None) -> str:
    """Return the first part of a command line that only a shell would understand; empty for none.

    No shell sees the line, so ``&&``, ``>`` or a second line would become words of the command, and ``$NAME``,
    ``$(...)`` and backticks would stay as they are. An ``&`` or ``;`` inside a word, as in a URL, is no operator here.
    What is quoted is none, but in double quotes a shell expands, so there an expansion counts, unless a shell gets it
    as in ``sh -c "..."``.

    Args:
        text: The command line.
        filled: The names of the parameters that are filled in, so that ``${NAME}`` is none; None for all names.
    """

    def masked(match: re.Match[str]) -> str:
        keep = match[0][0] == '"' and not for_shell
        return _ESCAPED.sub("__", match[0]) if keep else "_" * len(match[0])

    for_shell = True
    if found := _OPERATOR.search(_QUOTED.sub(masked, text.strip())):
        return found[0].strip() or "a second line"
    for_shell = _SHELL.search(text) is not None
    for found in _EXPANSION.finditer(_QUOTED.sub(masked, text)):
        if found[1] is None or (filled is not None and found[1] not in filled):
            return found[0]
    return ""


_EXPANSION = re.compile(r"\$\{(\w+)\}|\$\w+|\$\([^)]*\)|`[^`]*`")
_SHELL = re.compile(r"(?:^|[\s/])(?:ba|da|k|z|c|tc)?sh\s(?:.*\s)?-\w*c\s", re.DOTALL)
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_QUOTED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.""", re.DOTALL)
_OPERATOR = re.compile(r"\n|&&|\|\|?|[0-9]?>{1,2}|;(?=\s|$)|(?:^|(?<=\s))(?:;|&(?=\s|$)|<{1,2})")


@lru_cache(maxsize=1024)  # the jobs of an ensemble have few different command lines
def _split_cached(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


def placeholders(words: Sequence[str]) -> set[str]:
    """Return the names of the parameters that the words of a template ask for."""
    return {name for word in words for name in _TEMPLATE.findall(word) if name}


def check_template(text: str, *, what: str) -> None:
    """Raise InvalidInput where a template can't be split, or its doubled braces don't pair.

    JSON such as ``{"a":{"b":{x}}}`` holds a ``}}`` that would silently become one brace.
    """
    tokens = [match[0] for word in split(text, what=what) for match in _TEMPLATE.finditer(word)]
    if tokens.count("{{") != tokens.count("}}"):
        raise InvalidInput(
            f"{what}: {{{{ and }}}} stand for single braces in a template, and here they don't pair: double each brace "
            f"that isn't part of a placeholder"
        )


def check_ranks_template(words: Sequence[str]) -> None:
    """Check the words of a command line that starts the ranks of a job.

    Raises:
        ValueError: They hold an unknown placeholder, or nowhere the number of ranks.
    """
    for word in words:
        try:
            fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(word) if name is not None]
        except ValueError as err:
            raise ValueError(f"{word!r} is no template: {err}") from None
        for name, spec, how in fields:
            if name not in RANKS_PLACEHOLDERS or spec or how:
                known = ", ".join(f"{{{name}}}" for name in RANKS_PLACEHOLDERS)
                shown = f"{name}{f'!{how}' if how else ''}{f':{spec}' if spec else ''}"
                raise ValueError(f"{{{shown}}} is not known in {word!r}; known: {known}")
    if not any("{ranks}" in word or "{ranks_per_node}" in word for word in words):
        raise ValueError("the command line says nowhere how many ranks to start: write {ranks} into it")


def fill_template(words: Sequence[str], parameters: Mapping[str, object], *, what: str) -> list[str]:
    """Return the words of a template with each ``{name}`` replaced by its parameter, ``{{`` and ``}}`` by one brace.

    Raises:
        InvalidInput: A placeholder has no parameter.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name not in parameters:
            have = ", ".join(sorted(parameters)) or "none"
            raise InvalidInput(f"{what}: parameter {name!r} is missing (given: {have})")
        return rendered(parameters[name])

    return [_TEMPLATE.sub(value, word) for word in words]


def fill_known(words: Sequence[str], parameters: Mapping[str, object]) -> list[str]:
    """Return the words with each ``{name}`` of a parameter replaced by it; what else stands in braces stays."""

    def value(match: re.Match[str]) -> str:
        return rendered(parameters[match[1]]) if match[1] in parameters else match[0]

    return [_PLACEHOLDER.sub(value, word) for word in words] if parameters else list(words)


def rendered(value: object) -> str:
    """Return a parameter as a command gets it: text as it is, all else as compact JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
