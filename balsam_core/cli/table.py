"""Tables of text. The first rows decide the widths of the columns; the others are printed as they come."""

from __future__ import annotations

import os
from datetime import datetime
from itertools import chain, islice
from typing import TYPE_CHECKING

from balsam_core.cli.stdout import results
from balsam_core.cli.text import cut, printable, width

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SAMPLE = 500  # rows that decide the widths
WIDEST = 60  # characters that a column is padded to
NARROWEST = 8  # characters that a column keeps when the terminal is too narrow
GAP = "  "

_GREEN, _RED, _YELLOW, _BLUE = "\033[32m", "\033[31m", "\033[33m", "\033[34m"
_PLAIN = "\033[0m"
_COLOURS = {
    "JOB_FINISHED": _GREEN,
    "FAILED": _RED,
    "RUN_ERROR": _RED,
    "RUN_TIMEOUT": _YELLOW,
    "USER_KILLED": _YELLOW,
    "PARENT_KILLED": _YELLOW,
    "RUNNING": _BLUE,
}


def colours_wanted() -> bool:
    """Whether stdout is a terminal with colours and the user has not switched them off."""
    return results().isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width() -> int | None:
    """Return the width of the terminal; None where stdout is no terminal and nothing must be cut."""
    if not results().isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def cell(value: object) -> str:
    """Return a value for people: local time, ``-`` for nothing, JSON for lists and dictionaries."""
    if isinstance(value, str):
        return printable(value) or "-"
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple, dict)):
        import json

        return printable(json.dumps(value, ensure_ascii=False)) if value else "-"
    return printable(str(value))


def lines(
    titles: Sequence[str], rows: Iterable[Sequence[object]], *, columns: int | None = None, colours: bool = False
) -> Iterator[str]:
    """Give the lines of a table.

    Args:
        titles: The titles of the columns.
        rows: The values; read as they are printed, except for a sample.
        columns: Cut the lines to this width; None for no limit.
        colours: Whether job states are coloured.
    """
    source = iter(rows)
    sample = list(islice(source, SAMPLE))
    numeric = [bool(sample) and all(type(row[index]) is int for row in sample) for index in range(len(titles))]
    texts = [[cell(value) for value in row] for row in sample]
    widths = _column_widths([list(titles), *texts], columns)
    yield _format_line(titles, widths, numeric, columns, colours=False)
    for row in chain(texts, ([cell(value) for value in row] for row in source)):
        yield _format_line(row, widths, numeric, columns, colours=colours)


def _column_widths(texts: list[list[str]], columns: int | None) -> list[int]:
    found = [max(map(width, column)) for column in zip(*texts, strict=True)]
    if columns is None:  # one giant name must not push the other columns out of sight
        return [min(size, WIDEST) for size in found]
    spare = columns - len(GAP) * (len(found) - 1)
    while sum(found) > spare and max(found) > NARROWEST:
        widest = found.index(max(found))
        others = sum(found) - found[widest]
        second = max((size for index, size in enumerate(found) if index != widest), default=NARROWEST)
        found[widest] = max(NARROWEST, spare - others, min(second, found[widest] - 1))
    return found


def _format_line(
    texts: Sequence[str], widths: Sequence[int], numeric: Sequence[bool], columns: int | None, *, colours: bool
) -> str:
    parts = []
    last = len(texts) - 1
    for index, (text, size) in enumerate(zip(texts, widths, strict=True)):
        shown = text if columns is None else cut(text, size)
        padding = " " * (size - width(shown))
        colour = _COLOURS.get(text) if colours else None
        if colour:
            shown = f"{colour}{shown}{_PLAIN}"
        if numeric[index]:
            parts.append(padding + shown)
        else:
            parts.append(shown if index == last else shown + padding)
    return GAP.join(parts)
