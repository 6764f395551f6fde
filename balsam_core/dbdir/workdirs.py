"""Working directories ``data/WORKFLOW/NAME_ID``: safe for any name, one for each job.

A path part keeps the letters and digits of ASCII and ``._+=@,-``; other characters become ``_``; it never begins with a
dot or a dash. A workflow name that was changed or cut gets a hash, so that two never share a folder; job names need
none, since the id makes them unique. A directory is made with ``mkdir`` relative to an open parent that is not a
symbolic link, so that no link can lead outside ``data/``.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from balsam_core.errors import DBDirError
from balsam_core.system.files import reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import ParentRef, RemovedJob
    from balsam_core.model.job import Job

MAX_PART = 200  # bytes of one path part, below the 255 of common file systems

_UNSAFE = re.compile(r"[^A-Za-z0-9._+=@,-]+|^[.-]")
_NO_LINK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def workflow_name(workflow: str) -> str:
    """Return the path part of a workflow: its name where that is safe, else a safe form with a hash."""
    safe = _UNSAFE.sub("_", workflow)
    if safe == workflow and 0 < len(safe) <= MAX_PART:
        return safe
    from hashlib import sha256

    digest = sha256(workflow.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{safe[: MAX_PART - 13]}-{digest}" if safe else digest


def directory_name(name: str, job_id: int) -> str:
    """Return the path part of a job: ``NAME_ID``."""
    return _with_ending(name, f"_{job_id}")


def output_name(job: Job | ParentRef, ending: str, *, stem: str | None = None) -> str:
    """Return the name of a file that the launcher writes into a job's working directory.

    Args:
        job: The job; several may share a ``user_workdir``, so there the id is part of the name.
        ending: The end of the name, e.g. ``.out``.
        stem: The beginning of the name; None for the job's name.
    """
    job_id = f"_{job.id}" if job.user_workdir else ""
    return _with_ending(job.name if stem is None else stem, job_id + ending)


def _with_ending(name: str, ending: str) -> str:
    return (_UNSAFE.sub("_", name) or "job")[: MAX_PART - len(ending)] + ending


def workdir(db: DBDir, job: Job | ParentRef) -> Path:
    """Return the working directory of a job, whether it exists or not."""
    if job.user_workdir:
        from pathlib import Path

        return Path(job.user_workdir).expanduser()
    if job.id is None:
        raise DBDirError("a job that is not added has no working directory")
    return db.data.joinpath(workflow_name(job.workflow), directory_name(job.name, job.id))


def make_workdir(db: DBDir, job: Job) -> Path:
    """Make the job's working directory if it isn't there, and return it.

    Raises:
        DBDirError: A part of the path is a symbolic link or no directory, or can't be made; the cause is the OSError.
    """
    if job.user_workdir:
        return _make_user_workdir(db, job)
    path = workdir(db, job)
    workflow, name = path.parts[-2:]
    names: tuple[str, ...] = ()  # where it has got to
    try:
        with _open_directory(db.data) as data:
            names = (workflow,)
            with _open_directory(workflow, data, make=True) as folder:
                names = (workflow, name)
                try:
                    os.mkdir(name, 0o700, dir_fd=folder)
                except FileExistsError:
                    with _open_directory(name, folder):
                        pass  # it is one
    except OSError as err:
        is_blocked = err.errno in {errno.ENOTDIR, errno.ELOOP}
        why = "it is a symbolic link or no directory; remove what is there" if is_blocked else reason(err)
        raise DBDirError(f"can't make the working directory {str(db.data.joinpath(*names))!r}: {why}") from err
    return path


@contextmanager
def _open_directory(path: str | Path, parent: int | None = None, *, make: bool = False) -> Iterator[int]:
    """Give a descriptor of a directory that is no symbolic link; with ``make`` it is made where it isn't there."""
    try:
        descriptor = os.open(path, _NO_LINK, dir_fd=parent)
    except FileNotFoundError:
        if not make:
            raise
        with suppress(FileExistsError):
            os.mkdir(path, 0o700, dir_fd=parent)
        descriptor = os.open(path, _NO_LINK, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make_user_workdir(db: DBDir, job: Job) -> Path:
    try:
        path = workdir(db, job)
        if not path.is_absolute():
            raise DBDirError(f"the job's user_workdir {job.user_workdir!r} is no absolute path; write it in full")
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as err:  # RuntimeError: an unknown user's home
        raise DBDirError(f"can't make the working directory {job.user_workdir!r}: {reason(err)}") from err
    return path


def remove_workdirs(db: DBDir, jobs: Iterable[RemovedJob]) -> list[str]:
    """Remove the working directories in ``data/`` of removed jobs, and workflow directories that are empty then.

    Every directory is opened relative to its parent and must not be a symbolic link; inside, links are removed, not
    followed.

    Returns:
        What could not be removed, one line each.
    """
    by_workflow: dict[str, list[str]] = {}
    for job in jobs:
        by_workflow.setdefault(workflow_name(job.workflow), []).append(directory_name(job.name, job.id))
    faults: list[str] = []
    try:
        with _open_directory(db.data) as data:
            for workflow, names in by_workflow.items():
                faults += _remove_from_workflow(db.data / workflow, data, names)
    except OSError as err:
        return [f"{db.data}: {err.strerror}; the working directories stay"]
    return faults


def _remove_from_workflow(folder: Path, data: int, names: Iterable[str]) -> Iterator[str]:
    """Remove directories of one workflow; yield what could not be removed."""
    try:
        with _open_directory(folder.name, data) as descriptor:
            for name in names:
                try:
                    shutil.rmtree(name, dir_fd=descriptor)
                except FileNotFoundError:
                    pass  # the job never ran
                except OSError as err:
                    yield f"{folder / name}: {err.strerror or err}; it stays"
        with suppress(OSError):  # other jobs have directories there
            os.rmdir(folder.name, dir_fd=data)
    except FileNotFoundError:
        pass  # none of the jobs ever ran
    except OSError as err:
        yield f"{folder}: {err.strerror}; the working directories in it stay"
