"""Building a directory aside and giving it its place in one step, whoever else does the same and whatever is killed.

Two ways, by what is at the place:

* Nothing: the stage is a hidden neighbour, and one ``rename`` is the step. It fails if another came first.
* An empty directory (which may be a mount point, or somebody's current directory, and so must stay): the stage is
  hidden inside. The step is a symbolic link ``.balsam-init`` that names the stage: it can be made only once. Then the
  entries are moved up, the one that makes the directory count last. Whoever finds the link finishes the moving; since
  each stage has a name of its own, nobody can move another's entries late.

A stage belongs to a process that its name tells; those of dead processes of this host are removed by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import shutil
from typing import TYPE_CHECKING

from balsam_core.system.files import force_to_disk

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["discard", "finish", "is_ours", "make_stage", "publish", "sweep"]

_CLAIM = ".balsam-init"
_STAGE = re.compile(r"\.(?P<target>.*)\.balsam-init-(?P<host>[A-Za-z0-9.-]+)-(?P<pid>[0-9]+)-[0-9a-f]{8}", re.DOTALL)
_LONGEST = 60  # bytes of the target's and the host's name in a stage's


def make_stage(target: Path) -> Path:
    """Return a new hidden directory, 0700, on the file system of ``target``.

    Raises:
        OSError: It can't be made.
    """
    stage = _home(target) / f"{_prefix(target)}{_host()}-{os.getpid()}-{os.urandom(4).hex()}"
    stage.mkdir(mode=0o700)
    return stage


def publish(stage: Path, target: Path, last: str) -> bool:
    """Give the finished stage its place.

    Args:
        stage: From :func:`make_stage`, complete.
        target: The place.
        last: Name of the entry that makes ``target`` count; it appears after all others.

    Returns:
        Whether this stage won; if not, another one did, and this one is still there.

    Raises:
        OSError: Neither this stage nor another can take the place.
    """
    force_to_disk(stage)
    if stage.parent != target:
        try:
            stage.rename(target)
        except OSError as err:
            if err.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                return False
            raise
        force_to_disk(target.parent)
        return True
    try:
        (target / _CLAIM).symlink_to(stage.name)
    except FileExistsError:
        finish(target, last)
        return False
    if _present(target / last):  # another one won and has finished: its link was gone
        (target / _CLAIM).unlink(missing_ok=True)
        return False
    finish(target, last)
    return True


def finish(target: Path, last: str) -> None:
    """Move up the entries of the stage that won ``target``, if a killed or a slower process left some.

    Raises:
        OSError: An entry can't be moved, e.g. because somebody put another one in its place.
    """
    claim = target / _CLAIM
    name = _claimed(target)
    if name is None:
        return
    stage = target / name
    # In this order: a link made after `last` appeared belongs to a stage that came too late.
    if not _present(target / last):
        with contextlib.suppress(FileNotFoundError):
            names = sorted(os.listdir(stage), key=lambda entry: (entry == last, entry))  # noqa: PTH208  (names, not paths)
            for entry in names:
                if entry == last:
                    force_to_disk(target)
                with contextlib.suppress(FileNotFoundError):  # another process moved it
                    (stage / entry).rename(target / entry)
        force_to_disk(target)
    if _present(target / last) or not _present(stage):
        claim.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or gone
        stage.rmdir()


def sweep(target: Path) -> None:
    """Remove stages for ``target`` that dead processes of this host left behind."""
    for home in {target.parent, target}:
        with contextlib.suppress(OSError):
            for name in os.listdir(home):  # noqa: PTH208  (names, not paths)
                match = _STAGE.fullmatch(name)
                if match and name.startswith(_prefix(target)) and match["host"] == _host() and _dead(int(match["pid"])):
                    discard(home / name)


def discard(stage: Path) -> None:
    """Remove a stage if it is still there and hasn't won its place."""
    if _claimed(stage.parent) != stage.name:  # else half of it may be moved; the next one finishes that
        shutil.rmtree(stage, ignore_errors=True)


def is_ours(name: str) -> bool:
    """Say whether an entry of a directory is a stage or the link that names one."""
    return name == _CLAIM or _STAGE.fullmatch(name) is not None


def _claimed(target: Path) -> str | None:
    """Return the name of the stage that won ``target`` and isn't all moved up yet."""
    try:
        name = (target / _CLAIM).readlink().name
    except OSError:
        return None
    return name if _STAGE.fullmatch(name) else None


def _home(target: Path) -> Path:
    return target if target.is_dir() else target.parent


def _prefix(target: Path) -> str:
    name = os.fsencode(target.name)[:_LONGEST].decode(errors="ignore")
    return f".{name}.balsam-init-"


def _present(path: Path) -> bool:
    return os.path.lexists(path)


def _host() -> str:
    """Return the name of what process ids are counted in: the host, and on Linux the container."""
    name = re.sub(r"[^A-Za-z0-9.]", ".", platform.node())[:_LONGEST] or "localhost"
    try:
        return f"{name}.{os.stat('/proc/self/ns/pid').st_ino:x}"  # noqa: PTH116  (nothing to follow)
    except OSError:
        return name


def _dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
