"""The files that a launcher itself writes into a job's working directory, those of earlier attempts included."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from balsam_core.dbdir.workdirs import output_name
from balsam_core.errors import DBDirError
from balsam_core.system.files import atomic_write, read_regular

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from balsam_core.model.calls import ParentRef
    from balsam_core.model.job import Job

LARGEST_REGISTER = 64 * 1024  # bytes
LOG_STEMS = ("preprocess", "postprocess", "stage_in", "stage_out")


def log_names(job: Job | ParentRef) -> set[str]:
    """Return the names of all files that a launcher may write, as the last attempt has them."""
    outputs = {output_name(job, ".out"), output_name(job, ".err")}
    return outputs | {output_name(job, ".log", stem=stem) for stem in LOG_STEMS}


def is_log(name: str, logs: set[str]) -> bool:
    """Whether a file is one of ``logs``, or such a one of an earlier attempt: ``sim.out.2``."""
    stem, _, number = name.rpartition(".")
    return name in logs or (number.isdecimal() and stem in logs)


def keep_earlier_outputs(job: Job, workdir: Path, names: Iterable[str]) -> None:
    """Rename files that an earlier attempt wrote under these names: ``sim.out`` becomes ``sim.out.1``.

    An attempt need not have written a file, so a hidden file says which one each belongs to; without an entry there it
    is the first.

    Raises:
        OSError: A file can't be renamed, or the hidden file not be written.
    """
    register = workdir / f".balsam_{job.id}.attempts"
    written_by: dict[str, int] = {}
    with suppress(OSError, DBDirError, msgspec.DecodeError):  # the first time; or the job made something else of it
        stored = read_regular(register, limit=LARGEST_REGISTER, follow=False)
        written_by = msgspec.json.decode(stored, type=dict[str, int])
    for name in names:
        path = workdir / name
        try:
            is_empty = not path.lstat().st_size
        except FileNotFoundError:
            is_empty = True
        if not is_empty:
            os.rename(path, _free_name(f"{path}.{written_by.get(name, 1)}"))  # noqa: PTH104
        written_by[name] = job.attempt
    atomic_write(register, msgspec.json.encode(written_by))


def _free_name(path: str) -> str:
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = f"{path}.{number}"
    return free
