"""The last lines of files, and what is written to them afterwards, as bytes: like ``tail -F``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK = 64 * 1024


class TailedFile:
    """A file that is read as it grows, also when it is cut, or replaced by another of its name.

    Attributes:
        path: Its path; it need not exist yet.
        has_more: Whether :meth:`read_last` left out lines before those that it gave.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.has_more = False
        self._file: BinaryIO | None = None

    def read_last(self, lines: int | None) -> Iterator[bytes]:
        """Give the last lines, None for all, in pieces; what comes later is for :meth:`read_new`.

        Raises:
            OSError: The file is there, but can't be read.
        """
        if self._open():
            file = self._opened()
            start = 0 if lines is None else _start_of_last(file, lines)
            self.has_more = start > 0
            file.seek(start)
            yield from self.read_new()

    def read_new(self) -> Iterator[bytes]:
        """Give what was written since, in pieces.

        Raises:
            OSError: The file is there, but can't be read.
        """
        if self._file is None and not self._open():
            return
        file = self._opened()
        if os.fstat(file.fileno()).st_size < file.tell():  # it was cut
            file.seek(0)
        while piece := file.read(CHUNK):
            yield piece
        if self._is_replaced():
            self.close()
            yield from self.read_new()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> bool:
        try:
            self._file = open(self.path, "rb", buffering=0)  # noqa: PTH123, SIM115
        except FileNotFoundError:
            return False
        return True

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise ValueError(f"{self.path} is not open")
        return self._file

    def _is_replaced(self) -> bool:
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._opened().fileno()))
        except FileNotFoundError:
            return False


def _start_of_last(file: BinaryIO, lines: int) -> int:
    """Return where the last ``lines`` lines begin; reads backwards, no more than these."""
    end = file.seek(0, os.SEEK_END)
    if not lines:
        return end
    at, wanted = end, lines
    while at > 0:
        start = max(0, at - CHUNK)
        file.seek(start)
        piece = file.read(at - start)
        if at == end and piece.endswith(b"\n"):
            wanted += 1  # the end of the last line begins no other one
        count = piece.count(b"\n")
        if count >= wanted:
            position = len(piece)
            for _ in range(wanted):
                position = piece.rindex(b"\n", 0, position)
            return start + position + 1
        wanted -= count
        at = start
    return 0
