"""Stdout kept for results: what else is printed there, by a plugin or a process that it starts, goes to stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

STDOUT = 1  # the descriptor

_results: TextIO | None = None


def results() -> TextIO:
    """Return the stream for results: stdout, also while that is kept from others."""
    return _results or sys.stdout


@contextlib.contextmanager
def stdout_kept() -> Iterator[None]:
    """While the block runs, let only :func:`results` lead to stdout; both ``sys.stdout`` and its descriptor don't.

    Raises:
        OSError: The results can't be written.
    """
    global _results
    before = sys.stdout, _results
    results().flush()
    descriptor = _copy_of_stdout()
    if descriptor is None:
        copy = results()
    else:
        os.dup2(2, STDOUT)
        copy = open(descriptor, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: PTH123, SIM115
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
        sys.stdout, _results = before
        if descriptor is not None:
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
