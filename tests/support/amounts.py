"""How much a run of the fault tests does and allows: little in ``make test``, all of it in ``make test-faults``."""

from __future__ import annotations

import os

__all__ = ["FULL", "at_most"]

FULL = os.environ.get("BALSAM_FAULTS") == "full"


def at_most(seconds: float) -> float:
    """Return the limit for a duration: the given one in a full run, six times as much in a quick one.

    A full run has its machine to itself; a quick one shares it with other tests, whose load must not fail it.
    """
    return seconds if FULL else 6 * seconds
