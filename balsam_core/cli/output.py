"""The one output contract: ``table`` for people, ``json``, ``jsonl``, ``csv`` and ``ids`` for programs.

Results go to stdout and nothing else does; remarks go to stderr, and only with tables. Lists are written as they are
read, so that a million rows take no more memory than a hundred. In JSON, a list of results is an array of objects and
a single result is an object; times are ISO 8601 in UTC.
"""

from __future__ import annotations

import sys
from itertools import chain
from typing import TYPE_CHECKING

from balsam_core.cli.table import colours_wanted, lines, terminal_width
from balsam_core.cli.text import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["Printer"]


class Printer:
    """Writes results to stdout.

    Args:
        form: ``table``, ``json``, ``jsonl``, ``csv`` or ``ids``.
    """

    def __init__(self, form: str) -> None:
        self.form = form

    @property
    def for_people(self) -> bool:
        """Whether a person reads the output, who wants a limit, a hint and a title."""
        return self.form == "table"

    def rows(self, names: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
        """Write a list of results.

        Args:
            names: The names of the values; ``ids`` writes only the first value of each row.
            rows: The values.
            empty: What a person is told instead of a table without rows.
        """
        source = iter(rows)
        first = next(source, None)
        if first is not None:
            source = chain([first], source)
        elif self.for_people and empty:
            self.note(empty)
            return
        writer: Callable[[Sequence[str], Iterator[Sequence[object]]], None] = getattr(self, f"_{self.form}")
        writer(names, source)

    def one(self, result: Mapping[str, object], text: str | Iterable[str], *, ident: object = None) -> None:
        """Write a single result.

        Args:
            result: Its values by name; for ``csv`` they become a head and a row.
            text: What a person reads: a line or several.
            ident: What ``ids`` writes; None for the first value.
        """
        if self.for_people:
            for line in [text] if isinstance(text, str) else text:
                sys.stdout.write(f"{line}\n")
        elif self.form == "ids":
            value = next(iter(result.values())) if ident is None else ident
            for part in value if isinstance(value, (list, tuple)) else [value]:
                sys.stdout.write(f"{printable(str(part))}\n")
        elif self.form == "csv":
            self._csv(list(result), iter([list(result.values())]))
        else:
            self._bytes([_json(result), b"\n"])

    def note(self, text: str) -> None:
        """Tell a person something that is no result, on stderr."""
        if self.for_people:
            sys.stdout.flush()
            sys.stderr.write(f"{one_line(text)}\n")

    # ---- one method for each format

    def _table(self, names: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
        titles = [name.upper() for name in names]
        for line in lines(titles, rows, columns=terminal_width(), colours=colours_wanted()):
            sys.stdout.write(f"{line}\n")

    def _json(self, names: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
        def parts() -> Iterator[bytes]:
            before = b"[\n"
            for row in rows:
                yield before
                yield _json(dict(zip(names, row, strict=True)))
                before = b",\n"
            yield b"[]\n" if before == b"[\n" else b"\n]\n"

        self._bytes(parts())

    def _jsonl(self, names: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
        self._bytes(_json(dict(zip(names, row, strict=True))) + b"\n" for row in rows)

    def _csv(self, names: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
        import csv

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            writer.writerow([_csv_cell(value) for value in row])

    def _ids(self, names: Sequence[str], rows: Iterator[Sequence[object]]) -> None:  # noqa: ARG002
        for row in rows:
            sys.stdout.write(f"{printable(str(row[0]))}\n")

    @staticmethod
    def _bytes(parts: Iterable[bytes]) -> None:
        """Write JSON, which is UTF-8 whatever the terminal's encoding is."""
        sys.stdout.flush()
        write = sys.stdout.buffer.write
        for part in parts:
            write(part)


def _json(value: object) -> bytes:
    global _encode  # noqa: PLW0603  (msgspec is loaded when it is first needed)
    if _encode is None:
        import msgspec

        _encode = msgspec.json.Encoder().encode
    return _encode(value)


_encode: Callable[[object], bytes] | None = None


def _csv_cell(value: object) -> object:
    """Return a value as CSV holds it: JSON's words for all that is neither text nor number, nothing for None."""
    if value is None or type(value) in {str, int, float}:
        return value
    text = _json(value).decode()
    return text[1:-1] if text.startswith('"') else text
