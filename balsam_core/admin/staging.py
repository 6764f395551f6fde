"""Building a directory aside and publishing it in one step, whoever else does the same and whatever is killed.

There are two ways, because an existing directory can't be replaced: it may be a mount point, or the user's current
directory (``cd x; balsam init .``), and must stay the same one.

* If the target is missing, the stage is a hidden neighbour, and one ``rename`` publishes it. That fails if another
  process was first.
* If it is an empty directory, the stage is hidden inside. A symbolic link ``.balsam-init`` with the stage's name
  publishes it: it can be made only once. Then the entries are moved up, the one that makes the directory count last.
  Whoever finds the link finishes the moving. Each stage has a name of its own, so a slow process can't move entries of
  another stage.

A stage's name holds the identity of its process. Stages of dead processes of this host are removed by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from typing import TYPE_CHECKING

from balsam_core.system.files import force_to_disk
from balsam_core.system.processes import is_alive, start_of, this_machine

if TYPE_CHECKING:
    from pathlib import Path

_CLAIM = ".balsam-init"
_STAGE = re.compile(
    r"\.(?P<target>.*)\.balsam-init-(?P<host>[A-Za-z0-9.-]+)-(?P<pid>[0-9]+)-(?P<start>[0-9.]+)-[0-9a-f]{8}", re.DOTALL
)
_LONGEST_NAME = 60  # bytes of the target's and the host's name in a stage's


def make_stage(target: Path) -> Path:
    """Return a new hidden directory, 0700, on the file system of ``target``.

    Raises:
        OSError: It can't be made.
    """
    folder = target if target.is_dir() else target.parent
    process = f"{_host()}-{os.getpid()}-{start_of(os.getpid()) or 0.0}"
    stage = folder / f"{_prefix(target)}{process}-{os.urandom(4).hex()}"
    stage.mkdir(mode=0o700)
    return stage


def publish(stage: Path, target: Path, last: str) -> bool:
    """Make the finished stage the target.

    Args:
        stage: From :func:`make_stage`, complete.
        target: The directory to become.
        last: Name of the entry that makes ``target`` count; it appears after all others.

    Returns:
        Whether this stage won; if not, another one did, and this one still exists.

    Raises:
        OSError: Neither this stage nor another can become the target.
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
    if os.path.lexists(target / last):  # another one won and has finished: its link is gone
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
    name = _winner(target)
    if name is None:
        return
    stage = target / name
    # A link that was made after `last` appeared belongs to a stage that came too late. So the link is read first.
    if not os.path.lexists(target / last):
        with contextlib.suppress(FileNotFoundError):
            names = sorted(os.listdir(stage), key=lambda entry: (entry == last, entry))  # noqa: PTH208  (names, not paths)
            for entry in names:
                if entry == last:
                    force_to_disk(target)
                with contextlib.suppress(FileNotFoundError):  # another process moved it
                    (stage / entry).rename(target / entry)
        force_to_disk(target)
    if os.path.lexists(target / last) or not os.path.lexists(stage):
        claim.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or gone
        stage.rmdir()


def sweep(target: Path) -> None:
    """Remove stages for ``target`` that dead processes of this host left behind."""
    for folder in {target.parent, target}:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):  # noqa: PTH208  (names, not paths)
                match = _STAGE.fullmatch(name)
                if not match or not name.startswith(_prefix(target)) or match["host"] != _host():
                    continue
                if not is_alive(int(match["pid"]), float(match["start"])):
                    discard(folder / name)


def discard(stage: Path) -> None:
    """Remove a stage if it still exists and hasn't won its target."""
    if _winner(stage.parent) != stage.name:  # a winner may be moved only in part; the next process finishes that
        shutil.rmtree(stage, ignore_errors=True)


def is_ours(name: str) -> bool:
    """Say whether an entry of a directory is a stage or the link that names one."""
    return name == _CLAIM or _STAGE.fullmatch(name) is not None


def _winner(target: Path) -> str | None:
    """Return the name of the stage that won ``target`` and is not moved up completely."""
    try:
        name = (target / _CLAIM).readlink().name
    except OSError:
        return None
    return name if _STAGE.fullmatch(name) else None


def _prefix(target: Path) -> str:
    name = os.fsencode(target.name)[:_LONGEST_NAME].decode(errors="ignore")
    return f".{name}.balsam-init-"


def _host() -> str:
    """Return the name of the host and its namespace of process ids: a container has its own."""
    machine = this_machine()
    name = re.sub(r"[^A-Za-z0-9.]", ".", machine.node)[:_LONGEST_NAME] or "localhost"
    return f"{name}.{machine.pid_namespace:x}"
