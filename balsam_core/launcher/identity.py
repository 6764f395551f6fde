"""Who this process is, so that others can prove that it is gone."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import NamedTuple

__all__ = ["Identity", "this_process"]


class Identity(NamedTuple):
    """A process that no later one can be taken for.

    Attributes:
        host: Name of its machine.
        boot_id: What the machine calls this run of its kernel; empty where it says nothing.
        pid: Its process id.
        start: When it started, seconds since the epoch.
    """

    host: str
    boot_id: str
    pid: int
    start: float


def this_process() -> Identity:
    """Return the identity of this process."""
    import psutil

    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # macOS
        boot_id = ""
    return Identity(platform.node()[:255], boot_id[:64], os.getpid(), psutil.Process().create_time())
