"""The files that a launcher itself writes into a job's working directory, those of earlier attempts included."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec

from balsam_core.dbdir.workdirs import output_name
from balsam_core.errors import DBDirError
from balsam_core.system.files import atomic_write, read_regular

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from balsam_core.model.calls import ParentRef
    from balsam_core.model.job import Job

LARGEST_REGISTER = 64 * 1024 * 1024  # bytes
LOG_STEMS = ("preprocess", "postprocess", "stage_in", "input_files", "stage_out")
PARENT_IDS = "parent_ids"
_NUMBERED = re.compile(r"(.+?)\.(\d{1,9})(?:\.\d{1,9})?")  # of an earlier attempt; the last number where that was there

V = TypeVar("V")


def log_names(job: Job | ParentRef) -> set[str]:
    """Return the names of all files that a launcher may write, as the last attempt has them."""
    outputs = {output_name(job, ".out"), output_name(job, ".err")}
    outputs |= {output_name(job, ".log", stem=stem) for stem in LOG_STEMS}
    return outputs | {output_name(job, ".txt", stem=PARENT_IDS)}


def write_parent_ids(job: Job, workdir: Path) -> Path:
    """Write the ids of a job's parents to a file, one a line, and return its path.

    Raises:
        OSError: It can't be written.
    """
    path = workdir / output_name(job, ".txt", stem=PARENT_IDS)
    atomic_write(path, "".join(f"{parent}\n" for parent in job.parents).encode())
    return path


def is_log(name: str, logs: Collection[str]) -> bool:
    """Whether a file is one of ``logs``, or such a one of an earlier attempt: ``sim.out.2``."""
    numbered = _NUMBERED.fullmatch(name)
    return name in logs or (numbered is not None and numbered[1] in logs)


def outputs_by_attempt(job: Job, workdir: Path, names: Sequence[str]) -> dict[int, list[Path]]:
    """Return the files that the attempts wrote under these names, and that are not empty, by attempt.

    Args:
        job: The job.
        workdir: Its working directory; it need not exist.
        names: The names as the last attempt has them; the files of each attempt come in this order.
    """
    written_by = read_register(_register(job, workdir), int)
    present = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(workdir) as entries:
        for entry in entries:
            numbered = _NUMBERED.fullmatch(entry.name)
            if entry.name in names:
                found = (written_by.get(entry.name, 1), names.index(entry.name), entry.name)
            elif numbered is not None and numbered[1] in names:
                found = (int(numbered[2]), names.index(numbered[1]), entry.name)
            else:
                continue
            with suppress(FileNotFoundError):
                if entry.stat().st_size:
                    present.append(found)
    files: dict[int, list[Path]] = {}
    for attempt, _, name in sorted(present):
        files.setdefault(attempt, []).append(workdir / name)
    return files


def _register(job: Job, workdir: Path) -> Path:
    """Return the hidden file that says which attempt wrote each output."""
    return workdir / f".balsam_{job.id}.attempts"


def keep_earlier_outputs(job: Job, workdir: Path, names: Iterable[str]) -> None:
    """Rename files that an earlier attempt wrote under these names: ``sim.out`` becomes ``sim.out.1``.

    An attempt need not have written a file, so a hidden file says which one each belongs to; without an entry there it
    is the first.

    Raises:
        OSError: A file can't be renamed, or the hidden file not be written.
    """
    register = _register(job, workdir)
    written_by = read_register(register, int)
    for name in names:
        path = workdir / name
        try:
            is_empty = not path.lstat().st_size
        except FileNotFoundError:
            is_empty = True
        if not is_empty:
            os.rename(path, _free_name(f"{path}.{written_by.get(name, 1)}"))  # noqa: PTH104
        written_by[name] = job.attempt
    write_register(register, written_by)


def read_register(path: Path, kind: type[V]) -> dict[str, V]:
    """Return what a hidden file of ours says, by name; nothing where it isn't there, or a job has spoilt it."""
    with suppress(OSError, DBDirError, msgspec.DecodeError):
        return msgspec.json.decode(read_regular(path, limit=LARGEST_REGISTER, follow=False), type=dict[str, kind])  # type: ignore[valid-type]
    return {}


def write_register(path: Path, values: Mapping[str, object]) -> None:
    """Write a hidden file for :func:`read_register`.

    Raises:
        OSError: It can't be written.
    """
    atomic_write(path, msgspec.json.encode(values))


def _free_name(path: str) -> str:
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = f"{path}.{number}"
    return free
