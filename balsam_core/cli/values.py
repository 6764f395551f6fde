"""Values of options: numbers, ``KEY=VALUE``, JSON, lists of patterns, job states."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import click

from balsam_core.cli.text import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

LARGEST = 2**31 - 1


class _AtLeast(click.IntRange):
    """A number with a lower bound; the upper bound, that of a database's integers, is not in the help."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  (click's signature)
        number = super().convert(value, param, ctx)
        if number > LARGEST:
            self.fail(f"{value} is larger than {LARGEST}", param, ctx)
        return number


class _Fraction(click.FloatRange):
    """A number that may be a fraction; NaN is refused."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  (click's signature)
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


SHARE = _Fraction(0, 1e6)
DURATION = _Fraction(0, 1e8)
MINUTES = _Fraction(0, 60 * 24 * 366, min_open=True)
AT_LEAST_0 = _AtLeast(0)
AT_LEAST_1 = _AtLeast(1)


def converted(convert: Callable[[str, Any], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a click callback that converts an option's value by a function of the option's name and the value."""
    return lambda _ctx, param, value: None if value is None else convert(max(param.opts, key=len), value)


def mapping(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Return repeated ``KEY=VALUE`` options, split at the first equals sign, as a dictionary.

    Raises:
        click.UsageError: A text has another form, or a key is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{option}: {quote(text)} is not of the form KEY=VALUE")
        if key in found:
            raise click.UsageError(f"{option} gives {quote(key)} twice")
        found[key] = value
    return found


def parameters(option: str, texts: Iterable[str]) -> dict[str, Any]:
    """Return repeated ``KEY=VALUE`` options as job parameters, which commands get as they were typed."""
    return {key: _json_or_text(text) for key, text in mapping(option, texts).items()}


def _json_or_text(text: str) -> object:
    """Return the value of a JSON text if it can be stored and a command gets just this text for it, else the text."""
    import msgspec

    from balsam_core.errors import InvalidInput
    from balsam_core.model.command import rendered
    from balsam_core.model.text import check_document

    try:
        value = msgspec.json.decode(text)
        check_document("", value)
        return value if rendered(value) == text else text
    except (msgspec.MsgspecError, InvalidInput, RecursionError, UnicodeEncodeError):
        return text


def full_path(_option: str, text: str) -> str:
    """Return a path in full, so that it means the same to a launcher; ``~`` stays."""
    return os.path.abspath(text) if text and not text.startswith("~") else text  # noqa: PTH100


def json_object(option: str, text: str) -> dict[str, Any]:
    """Return a JSON object as a dictionary.

    Raises:
        click.UsageError: The text is something else.
    """
    import msgspec

    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as err:
        raise click.UsageError(f"{option}: {quote(text)} is no JSON object: {err}") from None


def patterns(option: str, texts: Iterable[str]) -> list[str]:
    """Return file patterns, given in several options or as several words of one option.

    Raises:
        click.UsageError: A quotation is not closed.
    """
    import shlex

    found: list[str] = []
    for text in texts:
        try:
            found += shlex.split(text)
        except ValueError:
            raise click.UsageError(f"{option}: a quotation is not closed in {quote(text)}") from None
    return found


def states(option: str, texts: Sequence[str]) -> list[str]:
    """Return job states, given in several options or separated by commas, in any case.

    Raises:
        click.UsageError: There is no such state.
    """
    from balsam_core.model.states import State

    words = [word for text in texts for word in text.replace(" ", "").split(",")]
    for word in words:
        name = word.upper()
        if name not in State.__members__:
            raise click.UsageError(f"{option}: there is no state {quote(word)}{similar(name, State.__members__)}")
    return list(dict.fromkeys(word.upper() for word in words))


def similar(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """Return the end of a message about a wrong word: the most similar known words, or all known ones."""
    from difflib import get_close_matches

    near = get_close_matches(word, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are: {', '.join(known)}"
