"""The logs of launchers, ``log/launcher-N.log``."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from balsam_core.dbdir.launcher_journal import read_journals

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir

_NAME = re.compile(r"launcher-(\d{1,18})\.log(?:\.\d+)?")
KEPT_LOGS = 100  # of launchers that have ended


def log_file(directory: DBDir, launcher: int) -> Path:
    """Return the file of a launcher's log."""
    return directory.log / f"launcher-{launcher}.log"


def prune_logs(directory: DBDir, living: Collection[int]) -> None:
    """Remove the logs of launchers that have ended, but for the :data:`KEPT_LOGS` that were written last.

    Args:
        directory: The DB directory.
        living: Ids of the launchers that may not have ended; others are spared that have a journal.

    Raises:
        OSError: The folder can't be read.
    """
    spared = {*living, *(found.launcher for found in read_journals(directory))}
    files: dict[int, list[os.DirEntry[str]]] = {}
    with os.scandir(directory.log) as entries:
        for entry in entries:
            if (match := _NAME.fullmatch(entry.name)) and int(match[1]) not in spared:
                files.setdefault(int(match[1]), []).append(entry)

    def written_at(launcher: int) -> float:
        return max(entry.stat(follow_symlinks=False).st_mtime for entry in files[launcher])

    for launcher in sorted(files, key=written_at, reverse=True)[KEPT_LOGS:]:
        for entry in files[launcher]:
            with suppress(OSError):
                os.unlink(entry)  # noqa: PTH108
