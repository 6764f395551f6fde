"""The files that a job gets and gives: links to parents' files, stage-in, stage-out.

Parents' files are linked, not copied. The links are relative inside ``data/``, so that they survive a move or a copy of
the DB directory. Nothing here ever replaces a file. Copying may take long, so the launcher runs ``cp`` as a process;
this module only makes the command lines.
"""

from __future__ import annotations

import os
import re
from fnmatch import translate
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core.dbdir import workdirs
from balsam_core.errors import InvalidInput
from balsam_core.launcher.job.outputs import is_log, log_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import ParentRef
    from balsam_core.model.job import Job

MOST_ARGUMENTS = 500  # files that one `cp` gets


class Patterns:
    """Shell patterns for names of files.

    As in a shell, a leading dot must be matched by a dot. A pattern without any letter or digit, such as ``*``, means
    "all results": it leaves out the files that launchers wrote.

    Raises:
        InvalidInput: A pattern names a file in another directory; the message names the field ``what``.
    """

    def __init__(self, patterns: Sequence[str], *, what: str) -> None:
        self._tests: list[tuple[re.Pattern[str], bool, bool]] = []
        for pattern in patterns:
            if "/" in pattern:
                raise InvalidInput(
                    f"{what}: the pattern {pattern!r} holds a slash; patterns match names in the working directory"
                )
            named = any(c.isalnum() for c in pattern)
            self._tests.append((re.compile(translate(pattern)), pattern.startswith("."), named))

    def match(self, name: str, logs: set[str] = frozenset()) -> bool:  # type: ignore[assignment]
        """Whether a file is wanted; ``logs`` are the names of files that a launcher wrote."""
        hidden = name.startswith(".")
        log = is_log(name, logs)
        return any(
            (dotted or not hidden) and (named or not log) and test.match(name) is not None
            for test, dotted, named in self._tests
        )


def link_parents(directory: DBDir, job: Job, workdir: Path, parents: Iterable[ParentRef]) -> int:
    """Link the parents' files that match ``input_files`` into the job's working directory.

    Where several parents have a file of one name, the parent with the lowest id gives it the plain name; for the others
    their id goes before the suffix: ``coordinates_17.xyz``. Linking again changes nothing.

    Returns:
        How many files are linked.

    Raises:
        InvalidInput: A pattern is wrong.
        OSError: A directory can't be read or a link not made.
    """
    patterns = Patterns(job.input_files, what="input_files")
    reserved = log_names(job)  # else the job's output would go through a link into its parent's file
    count = 0
    for parent in sorted(parents, key=lambda parent: parent.id):
        source = workdirs.workdir(directory, parent)
        if source == workdir:
            continue
        inside = not parent.user_workdir and not job.user_workdir
        target = os.path.relpath(source, workdir) if inside else str(source)
        logs = log_names(parent)
        try:
            names = sorted(name for name in os.listdir(source) if patterns.match(name, logs))  # noqa: PTH208
        except FileNotFoundError:
            continue  # it never ran, or its files were removed
        for name in names:
            _make_link(os.path.join(target, name), workdir, _link_names(name, parent.id, reserved))  # noqa: PTH118
            count += 1
    return count


def _link_names(name: str, parent_id: int, reserved: set[str]) -> Iterator[str]:
    """Give possible names for a link, the best one first."""
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


def stage_in_command(job: Job, workdir: Path) -> list[str]:
    """Return the command that copies ``stage_in``, a file or a directory's content, into the working directory.

    Raises:
        InvalidInput: It is no absolute path, or nothing is there.
    """
    source = _absolute_path("stage_in", job.stage_in)
    if not source.exists():
        raise InvalidInput(f"stage_in: {str(source)!r} does not exist")
    return ["cp", "-R", "-H", "--", f"{source}/." if source.is_dir() else str(source), str(workdir)]


def stage_out_commands(job: Job, workdir: Path) -> list[list[str]]:
    """Return the commands that copy the files that match ``stage_out_files`` to ``stage_out``, which is made.

    Raises:
        InvalidInput: It is no absolute path, or a pattern is wrong.
        OSError: A directory can't be read or made.
    """
    patterns = Patterns(job.stage_out_files, what="stage_out_files")
    target = _absolute_path("stage_out", job.stage_out)
    target.mkdir(parents=True, exist_ok=True)
    logs = log_names(job)
    names = sorted(f"./{name}" for name in os.listdir(workdir) if patterns.match(name, logs))  # noqa: PTH208
    chunks = [names[start : start + MOST_ARGUMENTS] for start in range(0, len(names), MOST_ARGUMENTS)]
    return [["cp", "-R", "-H", "--", *chunk, str(target)] for chunk in chunks]


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
