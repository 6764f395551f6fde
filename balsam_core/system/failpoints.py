"""Named points at which a test kills a process: ``BALSAM_FAILPOINT=name:n`` does when it gets there the n-th time.

One kill at a chosen point proves more than many at random ones. Without the variable a point costs nothing measurable.
"""

from __future__ import annotations

import os
import signal

_name, _, _count = os.environ.get("BALSAM_FAILPOINT", "").partition(":")
_left = int(_count) if _count.isdigit() else 1


def failpoint(name: str) -> None:
    """Die here, by SIGKILL, if the environment asks for it."""
    global _left  # noqa: PLW0603
    if name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
