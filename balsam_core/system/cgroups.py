"""A control group for all processes of a launcher, where one may be made: cgroup v2 of Linux.

A process leaves it only where it moves itself to another group on purpose. So the group ends what nothing else tells as
ours: a process that has left its parents and its environment behind. One may be made below a group that was delegated
to this user, as systemd documents it in "Control Group APIs and Delegation": it belongs to the user, or, for root, has
the attribute ``user.delegate``.
"""

from __future__ import annotations

import contextlib
import os
import signal
from functools import cache
from pathlib import Path, PurePosixPath

PREFIX = "balsam-"  # of the names of our groups; no other group is ever ended
_DELEGATED = ("user.delegate", "trusted.delegate")


@cache
def _mount_point() -> Path | None:
    """Return where the hierarchy is mounted whole; None where it isn't."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            fields, _, kind = line.partition(" - ")
            root, where = fields.split()[3:5]
            if kind.startswith("cgroup2 ") and root == "/" and "\\" not in where:
                return Path(where)
    return None


def folder_of(group: str) -> Path | None:
    """Return the folder of one of our groups; None where there can't be one."""
    path, mount = PurePosixPath(group), _mount_point()
    if mount is None or not path.name.startswith(PREFIX) or ".." in path.parts:
        return None
    return mount / path.relative_to("/")


def make_group(name: str) -> str:
    """Make a group below that of this process; return its path in the hierarchy, empty where none may be made."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        own = next((line.removeprefix("0::") for line in lines if line.startswith("0::/")), "")
        group = str(PurePosixPath(own or "/") / f"{PREFIX}{name}")
        folder = folder_of(group)
        if own and folder is not None and _is_delegated(folder.parent):
            folder.mkdir(mode=0o755, exist_ok=True)
            return group
    return ""


def _is_delegated(folder: Path) -> bool:
    if user := os.geteuid():
        return folder.stat().st_uid == user
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def end_group(group: str) -> bool:
    """Kill all processes of one of our groups on this machine, and remove it when they are gone.

    Returns:
        Whether it is gone; call it again until it is. The group of this process itself is left alone.
    """
    folder = folder_of(group) if group else None
    if folder is None:
        return True
    try:
        folders = [
            *sorted((path.parent for path in folder.rglob("cgroup.procs")), reverse=True)
        ]  # the inner ones first
        members = [int(word) for one in folders for word in (one / "cgroup.procs").read_text(encoding="ascii").split()]
        if os.getpid() in members:
            return False
        if members:
            _kill(folder, members)
        for one in folders:
            one.rmdir()
    except FileNotFoundError:
        pass
    except OSError:  # some have not ended yet, or it is somebody else's
        return False
    return not folder.exists()


def _kill(folder: Path, members: list[int]) -> None:
    try:
        (folder / "cgroup.kill").write_text("1", encoding="ascii")  # also those in groups within it
    except OSError:  # a kernel before 5.14
        for pid in members:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
