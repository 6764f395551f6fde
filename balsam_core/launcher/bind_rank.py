"""Binds a rank of an MPI job to its processors and becomes its program.

A program of its own, which imports nothing of Balsam: ``python -I -S bind_rank.py VARIABLE PROCESSORS COMMAND...``. The
environment variable holds the rank's number on its node; PROCESSORS are those of each rank, such as ``0,1:2,3``.
"""

from __future__ import annotations

import os
import sys


def main(variable: str, processors: str, *command: str) -> None:
    """Bind this process and become the command; does not return."""
    try:
        own = processors.split(":")[int(os.environ[variable])]
        os.sched_setaffinity(0, map(int, own.split(",")))
    except (OSError, KeyError, ValueError, IndexError) as err:
        sys.exit(f"a rank ({variable}) can't be bound to one of the processors {processors}: {err}")
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as err:
        sys.exit(f"a rank's program {command[0]!r} can't be started: {err.strerror}")


if __name__ == "__main__":
    main(*sys.argv[1:])
