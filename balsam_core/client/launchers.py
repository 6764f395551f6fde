"""The launchers of a DB that have not ended, and whether they live: by their leases, and by their processes here."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple

from balsam_core.dbdir import launcher_file
from balsam_core.model.calls import GetInfo, GetLaunchers

if TYPE_CHECKING:
    from balsam_core.client.slices import Runner
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.launcher_file import LauncherFile
    from balsam_core.model.calls import LauncherInfo

SILENT_AFTER = timedelta(minutes=3)  # a launcher renews its lease every minute

Condition = Literal["alive", "silent", "dead", "expired"]


class KnownLauncher(NamedTuple):
    """A launcher that has not ended.

    Attributes:
        info: What the database knows of it.
        file: What it says of itself; None where that can't be read.
        condition: ``alive``; ``silent``, not heard of for minutes though its lease is not over; ``expired``, its lease
            is over; ``dead``, its process on this machine is gone.
    """

    info: LauncherInfo
    file: LauncherFile | None
    condition: Condition

    @property
    def runs(self) -> bool:
        """Whether it may still run jobs."""
        return self.condition in {"alive", "silent"}


def known_launchers(runner: Runner, directory: DBDir) -> list[KnownLauncher]:
    """Read which launchers have not ended, by id."""
    found = runner.run(GetLaunchers())
    now = runner.run(GetInfo()).now if found else None
    known = []
    for info in found:
        file = launcher_file.read(directory, info.id)
        condition: Condition = "alive"
        if file is not None and file.is_dead:
            condition = "dead"
        elif not info.alive:
            condition = "expired"
        elif now is not None and now - info.seen_at > SILENT_AFTER:
            condition = "silent"
        known.append(KnownLauncher(info, file, condition))
    return known
