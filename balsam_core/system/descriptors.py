"""The open files of this process."""

from __future__ import annotations

import contextlib
import os


def keep_descriptors_private() -> None:
    """Keep descriptors that our parent left open (make's job server, a shell's 3>file) from being inherited."""
    try:
        numbers = [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208
    except OSError:
        return
    for number in numbers:
        if number > 2:  # noqa: PLR2004  (standard error)
            with contextlib.suppress(OSError):
                os.set_inheritable(number, False)
