"""Named points at which a test lets a process die: ``BALSAM_FAILPOINT=name:n`` kills it at the n-th passing.

A process that is killed at a chosen point proves more than many killed at random ones. Without the variable a point
costs nothing that could be measured.
"""

from __future__ import annotations

import os
import signal

__all__ = ["failpoint"]

_name, _, _count = os.environ.get("BALSAM_FAILPOINT", "").partition(":")
_left = int(_count) if _count.isdigit() else 1


def failpoint(name: str) -> None:
    """Die here, by SIGKILL, if the environment asks for it."""
    global _left  # noqa: PLW0603
    if name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
