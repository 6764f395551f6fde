"""The launchers of a DB that have not ended, and whether they live: how that is known, in one place.

There is proof of a launcher's death when its guardian's farewell is in its journal, or when, on this machine, neither
it nor its guardian lives and nothing of its jobs is left. There is proof of its life when this machine has its process.
Else it is judged by its silence, as the database tells.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NamedTuple

from balsam_core.dbdir.launcher_journal import MARK, Journal
from balsam_core.model.calls import GetLaunchers
from balsam_core.system.cgroups import end_group
from balsam_core.system.processes import end_marked, is_alive, is_stopped, this_machine

if TYPE_CHECKING:
    from balsam_core.client.slices import Runner
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.launcher_journal import Offer
    from balsam_core.model.calls import LauncherInfo

RENEWALS = 15  # in the time of a lease
SILENT_SHARE = 2.5 / RENEWALS  # of a lease: so long nothing is heard of a launcher that has missed two renewals

Condition = Literal["alive", "silent", "dead", "expired"]


class KnownLauncher(NamedTuple):
    """A launcher that has not ended.

    Attributes:
        info: What the database knows of it.
        offer: What it says that it can run; None where that can't be read.
        condition: ``alive``; ``silent``, it has missed renewals of its lease, which is not over; ``expired``, its lease
            is over; ``dead``, there is proof of that, though its processes may just be being ended.
    """

    info: LauncherInfo
    offer: Offer | None
    condition: Condition

    @property
    def runs(self) -> bool:
        """Whether it may still run jobs."""
        return self.condition in {"alive", "silent"}


def known_launchers(runner: Runner, directory: DBDir) -> list[KnownLauncher]:
    """Read which launchers have not ended, by id."""
    known = []
    for info in runner.run(GetLaunchers()):
        journal = Journal(directory, info.id)
        known.append(KnownLauncher(info, journal.offer, _condition_of(info, journal)))
    return known


def _condition_of(info: LauncherInfo, journal: Journal) -> Condition:
    if is_dead(info, journal):
        return "dead"
    if lives_here(journal):
        return "alive"
    if not info.alive:
        return "expired"
    return "silent" if is_silent(info) else "alive"


def is_silent(info: LauncherInfo) -> bool:
    """Say whether a launcher has missed renewals of its lease."""
    return info.silent_seconds > SILENT_SHARE * info.lease_seconds


def lives_here(journal: Journal) -> bool:
    """Say whether a launcher is seen to live on this machine; one that was stopped gives no sign of life."""
    head = journal.head
    return head is not None and head.is_alive_here and not is_stopped(head.launcher)


def is_dead(info: LauncherInfo, journal: Journal) -> bool:
    """Say whether a launcher's process is gone beyond doubt; its jobs' processes may just be being ended."""
    head, here = journal.head, this_machine()
    if head is None:  # it may have been lost before it could run anything
        is_here = (info.host, info.boot_id) == (here.node, here.boot_and_namespace())
        return is_here and not is_alive(info.pid, info.process_start)
    is_its_own = (head.machine.node, head.launcher) == (info.host, info.pid)
    return is_its_own and (journal.has_farewell or head.is_here) and not head.is_alive_here


def find_proof(info: LauncherInfo, journal: Journal) -> str | None:
    """Return how it is known that a launcher and all its processes are gone; ends what a lost guardian has left.

    Returns:
        A sentence; empty where the processes of a dead launcher are just being ended; None where it may live, or
        what is left of it is for another user to end.
    """
    if not is_dead(info, journal):
        return None
    head = journal.head
    if head is None:
        return None if info.jobs else describe(info, "was lost before it ran a job")
    if journal.has_farewell:
        return describe(info, "was lost; its guardian has ended all its processes")
    if journal.owner != os.geteuid():
        return None  # what is left is for its user to see and to end; root must not believe a file of others
    is_left = os.environ.get(MARK) == head.mark or is_alive(head.guardian, head.guardian_start)  # this very process is
    if is_left or not (end_group(head.group) and end_marked(MARK, head.mark)):
        return ""
    return describe(info, "was lost with its guardian; none of its processes is left")


def describe(info: LauncherInfo, what: str) -> str:
    """Return a sentence about a launcher."""
    return f"launcher {info.id} (host {info.host}, pid {info.pid}) {what}"
