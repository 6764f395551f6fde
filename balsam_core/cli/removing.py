"""Removing working directories, never following a symbolic link out of ``data/``."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from balsam_core.workdirs import directory_name, workflow_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from balsam_core.dbdir import DBDir
    from balsam_core.model.calls import RemovedJob

__all__ = ["remove_workdirs"]

_NO_LINK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
                    _remove(name, place, str(directory.data / folder / name), faults)
            finally:
                os.close(place)
            with contextlib.suppress(OSError):  # others still have directories there
                os.rmdir(folder, dir_fd=data)
    finally:
        os.close(data)
    return faults


def _remove(name: str, place: int, shown: str, faults: list[str]) -> None:
    try:
        shutil.rmtree(name, dir_fd=place)
    except FileNotFoundError:
        pass  # it never ran
    except OSError as err:
        faults.append(f"{shown}: {err.strerror or err}; it stays")
