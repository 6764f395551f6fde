"""Copying into a working directory before the run, and results out of it at the end: the command lines of that."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core.errors import InvalidInput
from balsam_core.launcher.job.outputs import log_names
from balsam_core.launcher.job.patterns import Patterns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balsam_core.model.job import Job

CP = ("cp", "-R", "-H", "-f", *(("--reflink=auto",) if sys.platform == "linux" else ()))
"""Copies directories, what a link on the command line leads to, and over a file that may not be written."""

_CP_LINKS = ("cp", "-R", "-P", "-f")
MOST_ARGUMENTS = 500  # files that one `cp` gets


def stage_in_command(job: Job, workdir: Path) -> list[str]:
    """Return the command that copies ``stage_in``, a file or a directory's content, into the working directory.

    Raises:
        InvalidInput: It is no absolute path, or nothing is there.
    """
    source = _absolute_path("stage_in", job.stage_in)
    if not source.exists():
        raise InvalidInput(f"stage_in: {str(source)!r} does not exist")
    return [*CP, "--", f"{source}/." if source.is_dir() else str(source), str(workdir)]


def stage_out_commands(job: Job, workdir: Path) -> list[list[str]]:
    """Return the commands that copy the files that match ``stage_out_files`` to ``stage_out``, which is made.

    A directory that holds the target is copied without it. A link that leads nowhere, or to a directory that holds the
    working directory or the target, is copied as a link.

    Raises:
        InvalidInput: It is no absolute path, or a pattern is wrong.
        OSError: A directory can't be read or made.
    """
    patterns = Patterns(job.stage_out_files, what="stage_out_files")
    target = _absolute_path("stage_out", job.stage_out)
    target.mkdir(parents=True, exist_ok=True)
    logs = log_names(job)
    wanted = sorted(name for name in os.listdir(workdir) if patterns.match(name, logs))  # noqa: PTH208
    inner = (os.path.realpath(workdir), os.path.realpath(target))
    if inner[0] == inner[1]:
        return []  # all is there already
    commands: list[list[str]] = []
    for folder, names, into in _copied_folders(workdir, wanted, target, inner):
        links = [name for name in names if _is_kept_link(workdir / folder / name, inner)]
        others = [name for name in names if name not in set(links)]
        for cp, some in ((CP, others), (_CP_LINKS, links)):
            paths = [os.path.join(".", folder, name) for name in some]  # noqa: PTH118
            chunks = (paths[at : at + MOST_ARGUMENTS] for at in range(0, len(paths), MOST_ARGUMENTS))
            commands += [[*cp, "--", *chunk, str(into)] for chunk in chunks]
    return commands


def _copied_folders(
    workdir: Path, names: Sequence[str], target: Path, inner: tuple[str, str]
) -> Iterator[tuple[str, list[str], Path]]:
    """Give folders in the working directory, the names in each that are copied whole, and where to."""
    folder, into = "", target
    while True:
        whole = [name for name in names if not _holds_target(workdir / folder / name, inner)]
        yield folder, whole, into
        around = next((name for name in names if name not in set(whole)), None)
        if around is None or os.path.realpath(workdir / folder / around) == inner[1]:
            return
        folder, into = os.path.join(folder, around), into / around  # noqa: PTH118
        into.mkdir(exist_ok=True)
        names = sorted(os.listdir(workdir / folder))  # noqa: PTH208


def _holds_target(path: Path, inner: tuple[str, str]) -> bool:
    """Whether something in the working directory is the target or a directory around it, and no link."""
    return not path.is_symlink() and _holds(str(path.resolve()), inner[1])


def _is_kept_link(path: Path, inner: tuple[str, str]) -> bool:
    """Whether a path is a link that can't be replaced by a copy of what it leads to."""
    return path.is_symlink() and (not path.exists() or any(_holds(os.path.realpath(path), one) for one in inner))


def _holds(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def _absolute_path(field: str, text: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise InvalidInput(
            f"{field}: {text!r}: there is no such user's home directory; write the path in full"
        ) from None
    if not path.is_absolute():
        raise InvalidInput(f"{field}: {text!r} is no absolute path; write it in full")
    return path
