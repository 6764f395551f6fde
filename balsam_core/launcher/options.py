"""What a launcher is asked to do, what it returns, and the constants of how it works."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from balsam_core.client.launchers import RENEWALS
from balsam_core.dbdir.launcher_journal import Offer
from balsam_core.model.calls import Resources
from balsam_core.system.hardware import usable_cores

if TYPE_CHECKING:
    from balsam_core.launcher.mpi import MPI
    from balsam_core.model.calls import Unfit


# ---- the database
LEASE_SECONDS = 900.0  # the jobs stay ours this long without a sign of life: an outage must not kill a simulation
RENEW_EVERY = LEASE_SECONDS / RENEWALS  # seconds
LEASE_MARGIN = 30.0  # seconds before the lease's end in which all processes are ended; a third of a short lease
LOOK_FOR_DEAD_EVERY = 3.0  # seconds between looks for launchers that have died
CALL_TIMEOUT = 5.0  # seconds that a call may block the loop; it is repeated later
LONGEST_CALL = 12.0  # the same for a call that took longer before: a stop request waits for its end
FIRST_BACK_OFF = 0.25  # seconds after the database could not be reached
LONGEST_BACK_OFF = 10.0
ASK_KILLED_EVERY = 1.0  # seconds between queries for jobs that the user killed
FLUSH_AFTER = 0.05  # seconds that a change waits for others to share its write
FLUSH_AT = 400  # changed jobs that are written at once
FLUSH_SHARE = 6  # while slots are busy, the next write waits this many times the duration of the last one

LOG_EVERY = 60.0  # seconds between two lines of progress in the log

# ---- claiming
FIRST_POLL = 0.1  # seconds between claims while no job is ready
LONGEST_POLL = 1.0
PROMOTE_EVERY = 5.0  # seconds between searches for added jobs that were left in CREATED
LARGEST_CLAIM = 500  # jobs
QUEUE_SECONDS = 0.25  # how long the claimed jobs should last: the loop stays busy and other launchers get jobs too

# ---- ending
TERM_GRACE = 10.0  # seconds from SIGTERM to SIGKILL when the launcher stops
KILL_GRACE = 5.0  # the same for a job that the user killed
LAST_WRITES_TIMEOUT = 8.0  # seconds to write the last changes to a database that doesn't answer
STOP_TIMEOUT = 20.0  # seconds from a stop request until the launcher gives up on everything that is left
LAST_CALL_TIMEOUT = 2.0  # seconds for one call after a stop request
LAST_EVENTS_TIMEOUT = 2.0  # seconds that a plugin may take for the last events


@dataclass(frozen=True, kw_only=True)
class LauncherOptions:
    """What to run, and with what.

    Attributes:
        slots: Most ranks of one thread at the same time, on this one node.
        workflow: Only jobs of this workflow; empty for all.
        only: Only these jobs; None for all.
        time_limit: Seconds until the launcher stops; None for no limit.
        most_jobs: Most jobs at the same time; None for as many as fit.
        cores: Numbers of the processors.
        gpus: Names of the GPUs.
        mpi: What starts jobs of several ranks; None for no such jobs.
        background: Whether it was detached from the program that started it.
        shares_cores: Whether it shares the processors with this user's other launchers; then there are as many slots.
        shares_gpus: The same for the GPUs.
    """

    slots: int
    workflow: str = ""
    only: tuple[int, ...] | None = None
    time_limit: float | None = None
    most_jobs: int | None = None
    cores: tuple[int, ...] = field(default_factory=usable_cores)
    gpus: tuple[str, ...] = ()
    mpi: MPI | None = None
    background: bool = False
    shares_cores: bool = False
    shares_gpus: bool = False


def make_offer(options: LauncherOptions, resources: Resources) -> Offer:
    """Return what a launcher says of itself to others."""
    limit = options.time_limit
    return Offer(
        background=options.background,
        workflow=options.workflow,
        only=None if options.only is None else list(options.only),
        nodes=resources.nodes,
        ranks_per_node=resources.ranks_per_node,
        gpus_per_node=resources.gpus_per_node,
        ends_at=None if limit is None else datetime.now(UTC) + timedelta(seconds=limit),
    )


@dataclass(frozen=True, kw_only=True)
class LauncherResult:
    """What a launcher did.

    Attributes:
        finished: Jobs that finished.
        failed: Jobs that failed.
        killed: Jobs that the user killed while they were ours.
        again: Jobs given back, to be run again after an error or because the launcher stopped.
        seconds: How long it took.
        unfit: Waiting jobs that need more than this launcher has, by shape; counted up to a limit.
        waiting: Jobs for it that wait for parents; not counted where it ended early.
        resources: What this launcher had at its end.
        changed_parents: Ids of jobs that have links to files of their parents that changed while they ran.
        fault: Whether it ended because no job could be started any more.
        reason: Why it ended though something was left; empty where nothing was.
        held_by_others: Which jobs other launchers still held at the end; empty for none.
        gave_up: Whether time was over while it had nothing to do but to wait for those, or for processors.
        signal: The signal that asked it to stop; None where none did.
        spent: Seconds by kind of work.
    """

    finished: int = 0
    failed: int = 0
    killed: int = 0
    again: int = 0
    seconds: float = 0.0
    unfit: list[Unfit] = field(default_factory=list)
    waiting: int = 0
    resources: Resources = field(default_factory=Resources)
    changed_parents: tuple[int, ...] = ()
    fault: bool = False
    reason: str = ""
    held_by_others: str = ""
    gave_up: bool = False
    signal: int | None = None
    spent: Mapping[str, float] = field(default_factory=dict)
