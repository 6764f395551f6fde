"""Files that come into a job's working directory and leave it: parents' files, stage-in, stage-out.

Parents' files are linked, not copied. The links are relative inside ``data/``, so that a DB directory that was moved or
copied still works. Nothing here ever replaces a file. Copying may take long, so it is done by ``cp`` as a process of
its own; here are only its command lines.
"""

from __future__ import annotations

import os
import re
from fnmatch import translate
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core.dbdir.workdirs import output_name, workdir
from balsam_core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import ParentRef
    from balsam_core.model.job import Job

__all__ = ["Patterns", "link_parents", "log_names", "stage_in_command", "stage_out_commands"]

MOST_ARGUMENTS = 500  # files that one `cp` gets

LOGS = ("preprocess", "postprocess", "stage_in", "stage_out")


def log_names(job: Job | ParentRef) -> set[str]:
    """Return the names of all files that a launcher may write into a job's working directory."""
    own = {output_name(job, ".out"), output_name(job, ".err")}
    return own | {output_name(job, ".log", stem=stem) for stem in LOGS}


class Patterns:
    """Shell patterns for names of files.

    As in a shell, a leading dot must be matched by a dot. A pattern without any letter or digit, such as ``*``, means
    "all results": it leaves out the files that launchers wrote.

    Args:
        patterns: The patterns.
        what: The field that they come from, for messages.

    Raises:
        InvalidInput: A pattern names a file in another directory.
    """

    def __init__(self, patterns: Sequence[str], *, what: str) -> None:
        self._tests: list[tuple[re.Pattern[str], bool, bool]] = []
        for pattern in patterns:
            if "/" in pattern:
                msg = f"{what}: the pattern {pattern!r} holds a slash; patterns match names in the working directory"
                raise InvalidInput(msg)
            named = any(c.isalnum() for c in pattern)
            self._tests.append((re.compile(translate(pattern)), pattern.startswith("."), named))

    def match(self, name: str, logs: Iterable[str] = ()) -> bool:
        """Whether a file is wanted; ``logs`` are the names of files that a launcher wrote."""
        hidden = name.startswith(".")
        log = name in logs
        return any(
            (dotted or not hidden) and (named or not log) and test.match(name) is not None
            for test, dotted, named in self._tests
        )


def link_parents(directory: DBDir, job: Job, place: Path, parents: Iterable[ParentRef]) -> int:
    """Link the parents' files that match ``input_files`` into the job's working directory.

    The first parent in the order of ids gives a file its plain name; where the name is taken, the parent's id goes
    before its suffix: ``coordinates_17.xyz``. Doing it again changes nothing.

    Returns:
        How many files are linked.

    Raises:
        InvalidInput: A pattern is wrong.
        OSError: A directory can't be read or a link not made.
    """
    patterns = Patterns(job.input_files, what="input_files")
    reserved = log_names(job)  # or the job's own output would be written through a link, into its parent's file
    count = 0
    for parent in sorted(parents, key=lambda parent: parent.id):
        source = workdir(directory, parent)
        if source == place:
            continue
        inside = not parent.user_workdir and not job.user_workdir
        shown = os.path.relpath(source, place) if inside else str(source)
        logs = log_names(parent)
        try:
            names = sorted(name for name in os.listdir(source) if patterns.match(name, logs))  # noqa: PTH208
        except FileNotFoundError:
            continue  # it never ran, or its files were cleared away
        for name in names:
            _link(os.path.join(shown, name), place, _names(name, parent.id, reserved))  # noqa: PTH118
            count += 1
    return count


def _names(name: str, parent: int, reserved: set[str]) -> Iterator[str]:
    """Give names for a link, the wanted one first."""
    if name not in reserved:
        yield name
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    while True:
        stem = f"{stem}_{parent}"
        yield stem + suffix


def _link(target: str, place: Path, names: Iterable[str]) -> None:
    for name in names:
        link = os.path.join(place, name)  # noqa: PTH118
        try:
            os.symlink(target, link)  # noqa: PTH211  (hot path)
        except FileExistsError:
            try:
                if os.readlink(link) == target:  # noqa: PTH115  made when the job was started before
                    return
            except OSError:
                pass  # a file: not ours to replace
        else:
            return


def stage_in_command(job: Job, place: Path) -> list[str]:
    """Return the command that copies ``stage_in``, a file or what a directory holds, into the working directory.

    Raises:
        InvalidInput: It is no absolute path, or nothing is there.
    """
    source = _absolute("stage_in", job.stage_in)
    if not source.exists():
        msg = f"stage_in: {str(source)!r} does not exist"
        raise InvalidInput(msg)
    return ["cp", "-R", "-H", "--", f"{source}/." if source.is_dir() else str(source), str(place)]


def stage_out_commands(job: Job, place: Path) -> list[list[str]]:
    """Return the commands that copy the files that match ``stage_out_files`` to ``stage_out``, which is made.

    Raises:
        InvalidInput: It is no absolute path, or a pattern is wrong.
        OSError: A directory can't be read or made.
    """
    patterns = Patterns(job.stage_out_files, what="stage_out_files")
    target = _absolute("stage_out", job.stage_out)
    target.mkdir(parents=True, exist_ok=True)
    logs = log_names(job)
    names = sorted(f"./{name}" for name in os.listdir(place) if patterns.match(name, logs))  # noqa: PTH208
    chunks = [names[start : start + MOST_ARGUMENTS] for start in range(0, len(names), MOST_ARGUMENTS)]
    return [["cp", "-R", "-H", "--", *chunk, str(target)] for chunk in chunks]


def _absolute(field: str, text: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        msg = f"{field}: {text!r}: there is no such user's home directory; write the path in full"
        raise InvalidInput(msg) from None
    if not path.is_absolute():
        msg = f"{field}: {text!r} is no absolute path; write it in full"
        raise InvalidInput(msg)
    return path
