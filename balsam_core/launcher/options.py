"""What a launcher is asked to do, and the constants of how it does it."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["LauncherOptions", "available_cores"]

# ---- the database
LEASE = 900.0  # seconds that the jobs stay ours without a sign of life: an outage must not kill a running simulation
RENEW_EVERY = 60.0  # seconds
CALL_TIMEOUT = 5.0  # seconds that a call may hold up the loop; it is repeated later
FIRST_BACK_OFF = 0.25  # seconds after a call found no database
LONGEST_BACK_OFF = 10.0
KILLED_EVERY = 1.0  # seconds between questions for jobs that the user killed
FLUSH_AFTER = 0.05  # seconds that a change waits for others to share its write
FLUSH_AT = 400  # changed jobs that are written at once
FLUSH_SHARE = 6  # the loop waits this many times the duration of a write before the next, as long as slots are busy

# ---- claiming
FIRST_IDLE = 0.1  # seconds between questions for more jobs while there are none
LONGEST_IDLE = 1.0
PROMOTE_EVERY = 5.0  # seconds between looks for added jobs that were left in CREATED
LARGEST_CLAIM = 500  # jobs
QUEUE_SECONDS = 0.25  # claimed jobs should last about so long: enough to stay busy, little to keep from others

# ---- ending
TERM_GRACE = 10.0  # seconds from SIGTERM to SIGKILL when the launcher stops
KILL_GRACE = 5.0  # the same for a job that the user killed
LAST_WORDS = 8.0  # seconds to get the last changes into a database that doesn't answer
DEADLINE = 20.0  # seconds from a request to stop until the launcher gives up on everything that is left
LAST_CALL_TIMEOUT = 2.0  # seconds for one call after a request to stop
HEAR_LAST = 2.0  # seconds that a plugin may take to hear of the last events


@dataclass(frozen=True, kw_only=True)
class LauncherOptions:
    """What to run, and with what.

    Attributes:
        slots: Most processes at the same time: cores, on this one node.
        workflow: Only jobs of this workflow; empty for all.
        only: Only these jobs; None for all.
        time_limit: Seconds until the launcher stops; None for no limit.
    """

    slots: int
    workflow: str = ""
    only: tuple[int, ...] | None = None
    time_limit: float | None = None


def available_cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
