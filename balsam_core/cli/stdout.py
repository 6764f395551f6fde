"""Stdout kept for results: what else is printed there, by a plugin or a process that it starts, goes to stderr."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer

STDOUT = 1  # the descriptor

_results: TextIO | None = None


class OutputError(OSError):
    """The results can't be written."""


class _Results(io.FileIO):
    """A descriptor whose errors are told from those of other files."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as err:
            raise OutputError(err.errno, err.strerror) from err


def results() -> TextIO:
    """Return the stream for results: stdout, also while that is kept from others."""
    return _results or sys.stdout


@contextlib.contextmanager
def stdout_kept(*, until_exit: bool = False) -> Iterator[None]:
    """While the block runs, let only :func:`results` lead to stdout; both ``sys.stdout`` and its descriptor don't.

    Args:
        until_exit: Whether they stay so for the rest of the process: a plugin may print when that ends, too.

    Raises:
        OutputError: The results can't be written.
    """
    global _results
    before, after = (sys.stdout, _results), (sys.stderr, None)
    results().flush()
    descriptor = _copy_of_stdout()
    if descriptor is None:
        copy = results()
    else:
        os.dup2(2, STDOUT)
        raw, encoding, errors = _Results(descriptor, "w"), sys.stdout.encoding, sys.stdout.errors
        copy = io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=raw.isatty())
    sys.stdout, _results = sys.stderr, copy
    try:
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                copy.flush()
            raise
        copy.flush()
    finally:
        sys.stdout, _results = after if until_exit and descriptor is not None else before
        if descriptor is not None:
            if not until_exit:
                os.dup2(descriptor, STDOUT)
            discard_output_of(descriptor)  # what could not be written
            copy.close()


def _copy_of_stdout() -> int | None:
    """Return a new descriptor of stdout; None where ``sys.stdout`` is something else."""
    try:
        return os.dup(STDOUT) if sys.stdout.fileno() == STDOUT else None
    except (OSError, AttributeError):
        return None


def discard_output_of(descriptor: int) -> None:
    """Redirect a stream to the null device, so that the interpreter's last flush can't fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
