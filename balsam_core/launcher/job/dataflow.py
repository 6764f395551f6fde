"""The files that a job gets from its parents, as links or as copies.

Links inside ``data/`` are relative, so that they survive a move or a copy of the DB directory. Nothing here replaces a
file that isn't an input from before. Copying may take long, so the launcher runs it as processes; this module only
makes the command lines.
"""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from balsam_core.dbdir import workdirs
from balsam_core.errors import InvalidInput
from balsam_core.launcher.job.outputs import log_names, read_register, write_register
from balsam_core.launcher.job.patterns import Patterns
from balsam_core.launcher.job.staging import CP, MOST_ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import ParentRef
    from balsam_core.model.job import Job

MOST_NAMED = 5  # files in a message


class ParentFiles(NamedTuple):
    """Files of one parent.

    Attributes:
        parent: Its id.
        directory: Its working directory, as a link in the job's one names it.
        names: Their names there.
    """

    parent: int
    directory: str
    names: list[str]


class Inputs(NamedTuple):
    """The parents' files that a job wants.

    Attributes:
        files: By parent, the lowest id first.
        unmatched: Patterns with wildcards that match none of them.
    """

    files: list[ParentFiles]
    unmatched: list[str]

    @property
    def remark(self) -> str:
        """What the history says about patterns without a match; empty where all have one."""
        if not self.unmatched:
            return ""
        return f"input_files: no file of a parent matches {', '.join(map(repr, self.unmatched[:MOST_NAMED]))}"


def find_inputs(directory: DBDir, job: Job, workdir: Path, parents: Iterable[ParentRef]) -> Inputs:
    """Return the parents' files that match ``input_files``.

    Raises:
        InvalidInput: A pattern is wrong; or a file that is named without a wildcard is neither a parent's nor in the
            working directory.
        OSError: A directory can't be read.
    """
    patterns = Patterns(job.input_files, what="input_files")
    files = []
    for parent, source in _sources(directory, job, workdir, parents):
        logs = log_names(parent)
        try:
            names = sorted(name for name in os.listdir(workdir / source) if patterns.match(name, logs))  # noqa: PTH208
        except FileNotFoundError:
            continue  # it never ran, or its files were removed
        if names:
            files.append(ParentFiles(parent.id, source, names))
    for pattern in [one for one in patterns.unmatched if not _WILDCARD.search(one)]:
        if not (workdir / pattern).exists():  # from stage_in, or in a directory of the user's
            raise InvalidInput(f"input_files: no parent has the file {pattern!r}")
        del patterns.unmatched[pattern]
    return Inputs(files, list(patterns.unmatched))


_WILDCARD = re.compile(r"[*?[]")


def _sources(
    directory: DBDir, job: Job, workdir: Path, parents: Iterable[ParentRef]
) -> Iterator[tuple[ParentRef, str]]:
    """Give the parents, lowest id first, each with its working directory as a link in the job's one names it.

    Not those whose directory is the job's own.
    """
    for parent in sorted(parents, key=lambda parent: parent.id):
        source = workdirs.workdir(directory, parent)
        if source != workdir:
            inside = not parent.user_workdir and not job.user_workdir
            yield parent, os.path.join("..", "..", *source.parts[-2:]) if inside else str(source)  # noqa: PTH118


# ---- as links


def link_inputs(job: Job, workdir: Path, inputs: Inputs) -> int:
    """Link files into the job's working directory; return how many.

    Where several parents have a file of one name, the parent with the lowest id gives it the plain name; for the others
    their id goes before the suffix: ``coordinates_17.xyz``. Linking again changes nothing.

    Raises:
        OSError: A link can't be made.
    """
    reserved = log_names(job)  # else the job's output would go through a link into its parent's file
    for files in inputs.files:
        for name in files.names:
            target = os.path.join(files.directory, name)  # noqa: PTH118
            _make_link(target, workdir, _input_names(name, files.parent, reserved))
    return sum(len(files.names) for files in inputs.files)


def _input_names(name: str, parent_id: int, reserved: Collection[str]) -> Iterator[str]:
    """Give possible names for an input, the best one first."""
    if name not in reserved:
        yield name
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    while True:
        stem = f"{stem}_{parent_id}"
        yield stem + suffix


def _make_link(target: str, workdir: Path, names: Iterable[str]) -> None:
    for name in names:
        link = os.path.join(workdir, name)  # noqa: PTH118
        try:
            os.symlink(target, link)  # noqa: PTH211  (hot path)
        except FileExistsError:
            try:
                if os.readlink(link) == target:  # noqa: PTH115  made when the job was started before
                    return
            except OSError:
                pass  # a file, which must not be replaced
        else:
            return


Signature = tuple[int, int, int]


class LinkedFiles:
    """The parents' files that a job could change through its links, as they were when this was made.

    Raises:
        OSError: The working directory can't be read.
    """

    def __init__(self, directory: DBDir, job: Job, workdir: Path, parents: Iterable[ParentRef]) -> None:
        owners = {source: parent.id for parent, source in _sources(directory, job, workdir, parents)}
        self._before: dict[str, tuple[int, Signature]] = {}  # path -> parent, signature
        with os.scandir(workdir) as entries:
            targets = [os.readlink(entry.path) for entry in entries if entry.is_symlink()]  # noqa: PTH115
        for target in targets:
            parent = owners.get(os.path.dirname(target))  # noqa: PTH120
            path = os.path.join(workdir, target)  # noqa: PTH118
            if parent is not None and (signature := _signature(path)) is not None:
                self._before[path] = parent, signature

    def changed(self) -> dict[int, list[str]]:
        """Return the names of the files that were changed or removed since, by parent."""
        found: dict[int, list[str]] = defaultdict(list)
        for path, (parent, before) in self._before.items():
            if _signature(path) != before:
                found[parent].append(os.path.basename(path))  # noqa: PTH119
        return {parent: sorted(found[parent]) for parent in sorted(found)}


def _signature(path: str) -> Signature | None:
    """Return what changes when a file is written; None for what isn't a regular file."""
    try:
        found = os.stat(path)  # noqa: PTH116  (hot path)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def change_remarks(job: Job, changed: dict[int, list[str]]) -> tuple[str, dict[int, str]]:
    """Return what the histories of a job and of its parents say about files that changed while it ran."""
    files = [f"{name} of job {parent}" for parent, names in changed.items() for name in names]
    own = f"changed while it ran, which has links to them: {_some(files)} (--input-mode copy gives a job copies)"
    others = {
        parent: f"changed while job {job.id} ran, which has links to them: {_some(names)}"
        for parent, names in changed.items()
    }
    return own, others


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


# ---- as copies


def copy_commands(job: Job, workdir: Path, inputs: Inputs) -> list[list[str]]:
    """Return the commands that copy files into the job's working directory, named as links would be.

    Copies from before are replaced; a hidden file there says which they are.

    Raises:
        OSError: The hidden file can't be written, or a copy from before not be removed.
    """
    register = workdir / f".balsam_{job.id}.copies"
    copies = read_register(register, str)
    owner_of = {name: origin for origin, name in copies.items()}
    reserved = log_names(job)
    plain: list[str] = []
    renamed: list[str] = []
    for files in inputs.files:
        for name in files.names:
            origin = f"{files.parent}/{name}"
            for copy in _input_names(name, files.parent, reserved):
                path = workdir / copy
                if owner_of.get(copy) == origin:
                    with suppress(FileNotFoundError, IsADirectoryError, PermissionError):  # a directory is merged
                        path.unlink()
                elif copy in owner_of or os.path.lexists(path):
                    continue
                break
            owner_of[copy], copies[origin] = origin, copy
            source = os.path.join(files.directory, name)  # noqa: PTH118
            if copy == name:
                plain.append(source)
            else:
                renamed += [f"{source}/." if (workdir / source).is_dir() else source, copy]
    write_register(register, copies)
    commands = [[*CP, "--", *plain[at : at + MOST_ARGUMENTS], "."] for at in range(0, len(plain), MOST_ARGUMENTS)]
    each = ["sh", "-c", _COPY_PAIRS, *CP]
    return commands + [
        [*each, "--", *renamed[at : at + MOST_ARGUMENTS]] for at in range(0, len(renamed), MOST_ARGUMENTS)
    ]


_COPY_PAIRS = """\
cp="$0"
while [ "$1" != -- ]; do cp="$cp $1"; shift; done
shift
while [ $# -gt 1 ]; do $cp -- "$1" "$2" || exit; shift 2; done
"""
