"""Output in one of the formats ``table`` for people, ``json``, ``jsonl``, ``csv`` and ``ids`` for programs.

Only results go to stdout; remarks go to stderr, and only with tables. Lists are written as they are read, so that a
million rows take no more memory than a hundred. In JSON, a list of results is an array of objects and a single result
is an object; times are ISO 8601 in UTC.
"""

from __future__ import annotations

import errno
import sys
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

from balsam_core.cli.stdout import OutputError, results
from balsam_core.cli.table import colours_wanted, lines, terminal_width
from balsam_core.cli.text import flatten, printable
from balsam_core.errors import PartlyDone
from balsam_core.system.files import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


class Printer:
    """Writes results to stdout in one of the formats."""

    def __init__(self, output_format: str) -> None:
        self.format = output_format

    @property
    def for_people(self) -> bool:
        """Whether a person reads the output, who wants limits, hints and titles."""
        return self.format == "table"

    def rows(self, names: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
        """Write a list of results.

        Args:
            names: The names of the values; ``ids`` writes only the first value of each row.
            rows: The values.
            empty: Printed for people instead of a table without rows.
        """
        source = iter(rows)
        first = next(source, None)
        if first is not None:
            source = chain([first], source)
        elif self.for_people and empty:
            self.note(empty)
            return
        write: Callable[[Sequence[str], Iterator[Sequence[object]]], None] = getattr(self, f"_write_{self.format}")
        write(names, source)

    def one(
        self, result: Mapping[str, object], text: str | Iterable[str], *, ids: object = None, done: str = ""
    ) -> None:
        """Write a single result.

        Args:
            result: Its values by name; for ``csv`` they become a header and a row.
            text: For people: a line or several.
            ids: What the format ``ids`` writes, one value or several; None for the first value of ``result``.
            done: What the command has changed, in words; empty for a command that only reads.

        Raises:
            PartlyDone: The change is made, but the result can't be written.
            OutputError: The result can't be written, or its reader went away.
        """
        try:
            self._write_one(result, text, ids)
            if done:
                results().flush()
        except OutputError as err:
            if not done or err.errno == errno.EPIPE:
                raise
            raise PartlyDone(f"{done}; only the answer can't be printed: {reason(err)}") from err

    def _write_one(self, result: Mapping[str, object], text: str | Iterable[str], ids: object) -> None:
        if self.for_people:
            for line in [text] if isinstance(text, str) else text:
                results().write(f"{line}\n")
        elif self.format == "ids":
            value = next(iter(result.values())) if ids is None else ids
            self._write_ids((), ([part] for part in (value if isinstance(value, (list, tuple)) else [value])))
        elif self.format == "csv":
            self._write_csv(list(result), iter([list(result.values())]))
        else:
            self._write_bytes([_json_encoder()(result), b"\n"])

    def text(self, text: str) -> None:
        """Write lines for people to stdout."""
        results().write(f"{text}\n")

    def note(self, text: str) -> None:
        """Write a remark for people to stderr."""
        if self.for_people:
            results().flush()
            sys.stderr.write(f"{flatten(text)}\n")

    # ---- one method for each format

    def _write_table(self, names: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
        titles = [name.upper() for name in names]
        for line in lines(titles, rows, columns=terminal_width(), colours=colours_wanted()):
            results().write(f"{line}\n")

    def _write_json(self, names: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
        def parts() -> Iterator[bytes]:
            separator = b"[\n"
            for row in rows:
                yield separator
                yield _json_encoder()(dict(zip(names, row, strict=True)))
                separator = b",\n"
            yield b"[]\n" if separator == b"[\n" else b"\n]\n"

        self._write_bytes(parts())

    def _write_jsonl(self, names: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
        self._write_bytes(_json_encoder()(dict(zip(names, row, strict=True))) + b"\n" for row in rows)

    def _write_csv(self, names: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
        import csv

        writer = csv.writer(_UnixLines(), lineterminator="\r\n")
        writer.writerow(names)
        for row in rows:
            writer.writerow([_csv_cell(value) for value in row])

    def _write_ids(self, names: Sequence[str], rows: Iterator[Sequence[object]]) -> None:  # noqa: ARG002
        for row in rows:
            results().write(f"{printable(str(row[0]))}\n")

    @staticmethod
    def _write_bytes(parts: Iterable[bytes]) -> None:
        """Write JSON, which is UTF-8 whatever the terminal's encoding is."""
        results().flush()
        write = results().buffer.write
        for part in parts:
            write(part)


@cache
def _json_encoder() -> Callable[[object], bytes]:
    from msgspec.json import Encoder

    fast = Encoder().encode

    def encode(value: object) -> bytes:
        try:
            return fast(value)
        except UnicodeEncodeError:  # a path that is not UTF-8
            import json

            from msgspec import to_builtins

            return json.dumps(to_builtins(value), separators=(",", ":")).encode()

    return encode


class _UnixLines:
    """Takes lines with the end that makes ``csv`` quote every cell with a CR or LF, and writes them with LF."""

    def write(self, line: str) -> int:
        return results().write(line.removesuffix("\r\n") + "\n")


def _csv_cell(value: object) -> object:
    """Return a value for CSV: text and numbers as they are, nothing for None, all else as JSON."""
    if value is None or type(value) in {str, int, float}:
        return value
    text = _json_encoder()(value).decode()
    return text[1:-1] if text.startswith('"') else text
