"""Columns of text, as fast as the terminal: the widths come from the first rows, the others stream."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from itertools import chain, islice
from typing import TYPE_CHECKING

from balsam_core.cli.text import cut, printable, width

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["cell", "colours_wanted", "lines", "terminal_width"]

SAMPLE = 500  # rows that decide the widths
WIDEST = 60  # columns that a longer cell makes the others keep free for it
NARROWEST = 8  # columns that a cell keeps when the terminal is too narrow
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
    """Whether stdout is a terminal that shows colours and the user has not asked for none."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width() -> int | None:
    """Return the columns of the terminal; None where stdout is none and nothing must be cut."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def cell(value: object) -> str:
    """Return a value as a person reads it: local time, ``-`` for nothing, JSON for lists and dictionaries."""
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
        titles: The heads of the columns.
        rows: The values; read as they are printed, but for a sample.
        columns: Cut the lines to so many columns; None for no limit.
        colours: Whether job states are coloured.
    """
    source = iter(rows)
    sample = list(islice(source, SAMPLE))
    numeric = [bool(sample) and all(type(row[place]) is int for row in sample) for place in range(len(titles))]
    texts = [[cell(value) for value in row] for row in sample]
    widths = _widths([list(titles), *texts], columns)
    yield _line(titles, widths, numeric, columns, colours=False)
    for row in chain(texts, ([cell(value) for value in row] for row in source)):
        yield _line(row, widths, numeric, columns, colours=colours)


def _widths(texts: list[list[str]], columns: int | None) -> list[int]:
    found = [max(map(width, column)) for column in zip(*texts, strict=True)]
    # The last column needs no padding, and a giant name must not push all others out of sight.
    found = [min(size, WIDEST) if columns is None else size for size in found]
    if columns is None:
        return found
    spare = columns - len(GAP) * (len(found) - 1)
    while sum(found) > spare and max(found) > NARROWEST:
        widest = found.index(max(found))
        others = sum(found) - found[widest]
        second = max((size for place, size in enumerate(found) if place != widest), default=NARROWEST)
        found[widest] = max(NARROWEST, spare - others, min(second, found[widest] - 1))
    return found


def _line(
    texts: Sequence[str], widths: Sequence[int], numeric: Sequence[bool], columns: int | None, *, colours: bool
) -> str:
    parts = []
    last = len(texts) - 1
    for place, (text, size) in enumerate(zip(texts, widths, strict=True)):
        shown = text if columns is None else cut(text, size)
        filling = " " * (size - width(shown))
        colour = _COLOURS.get(text) if colours else None
        if colour:
            shown = f"{colour}{shown}{_PLAIN}"
        if numeric[place]:
            parts.append(filling + shown)
        else:
            parts.append(shown if place == last else shown + filling)
    return GAP.join(parts)
