"""Working directories ``data/WORKFLOW/NAME_ID``: safe for any name, one for each job.

A path part keeps letters, digits and ``._+=@,-`` of ASCII; other characters become ``_``; it never begins with a dot
or a dash. Whatever was changed or cut is told apart by a hash in workflow names; job names need none, since the id
makes them unique. A directory is made with ``mkdir`` relative to an open parent that is not a symbolic link, so a
planted link can't lead outside ``data/``.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from balsam_core.errors import DBDirError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import ParentRef, RemovedJob
    from balsam_core.model.job import Job

__all__ = ["directory_name", "make_workdir", "output_name", "remove_workdirs", "workdir", "workflow_name"]

LONGEST = 200  # bytes of one path part, below the 255 of common file systems

_UNSAFE = re.compile(r"[^A-Za-z0-9._+=@,-]+")


def _safe(text: str) -> str:
    text = _UNSAFE.sub("_", text)
    if text[:1] in {".", "-"}:
        text = "_" + text[1:]
    return text


def workflow_name(workflow: str) -> str:
    """Return the path part of a workflow: its name where that is safe, else a safe form with a hash."""
    plain = _safe(workflow)
    if plain == workflow and 0 < len(plain) <= LONGEST:
        return plain
    from hashlib import sha256

    mark = sha256(workflow.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{plain[: LONGEST - 13]}-{mark}" if plain else mark


def directory_name(name: str, job_id: int) -> str:
    """Return the path part of a job: ``NAME_ID``."""
    return _with_ending(name, f"_{job_id}")


def output_name(job: Job | ParentRef, ending: str, *, stem: str | None = None) -> str:
    """Return the name of a file that the launcher writes into a job's working directory.

    Args:
        job: The job; several may share a ``user_workdir``, so there the id is part of the name.
        ending: The end of the name, e.g. ``.out``.
        stem: What stands before it; None for the job's name.
    """
    number = f"_{job.id}" if job.user_workdir else ""
    return _with_ending(job.name if stem is None else stem, number + ending)


def _with_ending(name: str, ending: str) -> str:
    return (_safe(name) or "job")[: LONGEST - len(ending)] + ending


def workdir(directory: DBDir, job: Job | ParentRef) -> Path:
    """Return the working directory of a job, whether it exists or not."""
    if job.user_workdir:
        from pathlib import Path

        return Path(job.user_workdir).expanduser()
    if job.id is None:
        msg = "a job that is not added has no working directory"
        raise DBDirError(msg)
    return directory.data / workflow_name(job.workflow) / directory_name(job.name, job.id)


_NO_LINK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_workdir(directory: DBDir, job: Job) -> Path:
    """Make the job's working directory if it isn't there, and return it.

    Raises:
        DBDirError: A part of the path is a symbolic link or no directory, or can't be made; the cause is the OSError.
    """
    if job.user_workdir:
        return _make_user_workdir(job)
    path = workdir(directory, job)
    part = directory.data
    try:
        place = os.open(part, _NO_LINK)
        try:
            for name in path.parts[-2:]:
                part /= name
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=place)
                inner = os.open(name, _NO_LINK, dir_fd=place)
                os.close(place)
                place = inner
        finally:
            os.close(place)
    except OSError as err:
        planted = err.errno in {errno.ENOTDIR, errno.ELOOP}
        why = "it is a symbolic link or no directory; remove what is there" if planted else _words(err)
        msg = f"can't make the working directory {str(part)!r}: {why}"
        raise DBDirError(msg) from err
    return path


def _make_user_workdir(job: Job) -> Path:
    from pathlib import Path

    try:
        path = Path(job.user_workdir).expanduser()
        if not path.is_absolute():
            msg = f"the job's user_workdir {job.user_workdir!r} is no absolute path; write it in full"
            raise DBDirError(msg)
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as err:  # RuntimeError: an unknown user's home
        msg = f"can't make the working directory {job.user_workdir!r}: {_words(err)}"
        raise DBDirError(msg) from err
    return path


def _words(err: Exception) -> str:
    return ((isinstance(err, OSError) and err.strerror) or str(err)).lower()


def remove_workdirs(directory: DBDir, jobs: Iterable[RemovedJob]) -> list[str]:
    """Remove what is in ``data/`` of removed jobs, and workflow directories that are empty then.

    Every directory is opened relative to its parent and must not be a symbolic link; inside, links are removed, not
    followed.

    Returns:
        What could not be removed, one line each.
    """
    faults: list[str] = []
    folders: dict[str, list[str]] = {}
    for job in jobs:
        folders.setdefault(workflow_name(job.workflow), []).append(directory_name(job.name, job.id))
    try:
        data = os.open(directory.data, _NO_LINK)
    except OSError as err:
        return [f"{directory.data}: {err.strerror}; the working directories stay"]
    try:
        for folder, names in folders.items():
            try:
                place = os.open(folder, _NO_LINK, dir_fd=data)
            except FileNotFoundError:
                continue  # none of them ever ran
            except OSError as err:
                faults.append(f"{directory.data / folder}: {err.strerror}; the working directories in it stay")
                continue
            try:
                for name in names:
                    _remove_tree(name, place, str(directory.data / folder / name), faults)
            finally:
                os.close(place)
            with suppress(OSError):  # others still have directories there
                os.rmdir(folder, dir_fd=data)
    finally:
        os.close(data)
    return faults


def _remove_tree(name: str, place: int, shown: str, faults: list[str]) -> None:
    try:
        shutil.rmtree(name, dir_fd=place)
    except FileNotFoundError:
        pass  # it never ran
    except OSError as err:
        faults.append(f"{shown}: {err.strerror or err}; it stays")
