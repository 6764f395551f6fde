"""Launchers in the background: starting one that goes on without its terminal, and stopping those of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

from balsam_core.dbdir.launcher_journal import Journal, read_journals
from balsam_core.errors import Conflict, NotFound, TimedOut
from balsam_core.launcher.options import STOP_TIMEOUT
from balsam_core.system.processes import is_alive, send_signal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir

STOP_MARGIN = 10.0  # seconds beyond those that a launcher takes at the most to stop
STOP_POLL = 0.05


class Started(NamedTuple):
    """How the start of a launcher went.

    Attributes:
        launcher: Its id; None where it ended before it had one.
        pid: Its process.
        errors: What it wrote to stderr before it was ready.
        exit_code: Its exit code, where it ended.
    """

    launcher: int | None
    pid: int
    errors: bytes
    exit_code: int


def start(command: Sequence[str], only: Iterable[int] | None, folder: Path) -> Started:
    """Run a launcher in a session of its own, and wait until it says that it is registered.

    Args:
        command: Its command line; a descriptor for :func:`report` is appended.
        only: Ids for its stdin, None for no stdin.
        folder: Its working directory.

    Raises:
        OSError: It can't be started.
    """
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as errors, os.fdopen(read_end, "rb") as report:
        stdin.write("\n".join(map(str, only or ())).encode())
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                [*command, str(write_end)],
                stdin=subprocess.DEVNULL if only is None else stdin,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=folder,
                pass_fds=[write_end],
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        told = report.read()  # until it is registered, or has ended
        if told:
            process.returncode = 0  # it is not ours to wait for
            return Started(json.loads(told), process.pid, b"", 0)
        process.wait()
        errors.seek(0)
        return Started(None, process.pid, errors.read(), process.returncode)


def report(descriptor: int, launcher: int, log: Path) -> None:
    """Tell :func:`start` that this launcher is registered, and send what else is printed to its log."""
    with open(log, "ab") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        with open(descriptor, "wb") as channel:
            channel.write(json.dumps(launcher).encode())


class Local(NamedTuple):
    """A launcher whose process lives on this machine.

    Attributes:
        id: Its id.
        pid: Its process.
        start: When that started, as :func:`~balsam_core.system.processes.start_of` tells.
        background: Whether it was started with ``--daemon``.
        is_ours: Whether this user has started it.
    """

    id: int
    pid: int
    start: float
    background: bool
    is_ours: bool


def running_here(db: DBDir) -> list[Local]:
    """Return the launchers of a DB whose processes live on this machine, by id."""
    found = []
    for journal in read_journals(db):
        head, offer = journal.head, journal.offer
        if head is not None and head.is_alive_here:
            is_ours = journal.owner == os.geteuid()  # root must not believe a file of others
            background = offer is not None and offer.background
            found.append(Local(journal.launcher, head.launcher, head.launcher_start, background, is_ours))
    return found


def stop(db: DBDir, launcher: int | None) -> list[int]:
    """Stop one launcher, or all in the background, of this machine, and wait until they have ended.

    Returns:
        Their ids.

    Raises:
        NotFound: No such launcher runs here.
        Conflict: It runs elsewhere, or isn't ours to stop.
        TimedOut: One didn't end.
    """
    here = running_here(db)
    chosen = [one for one in here if one.id == launcher or (launcher is None and one.background and one.is_ours)]
    if launcher is not None and not chosen:
        _refuse(db, launcher)
    for found in chosen:
        is_sent = found.is_ours and send_signal(found.pid, found.start, signal.SIGTERM)
        if not is_sent and is_alive(found.pid, found.start):
            raise Conflict(f"launcher {found.id} (pid {found.pid}) is another user's: only that user can stop it")
    deadline = time.monotonic() + STOP_TIMEOUT + STOP_MARGIN
    for found in chosen:
        while is_alive(found.pid, found.start):
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"launcher {found.id} (pid {found.pid}) has not ended yet: look at it with "
                    f"'balsam log launcher {found.id}'; the same command once more kills its jobs at once"
                )
            time.sleep(STOP_POLL)
    return [found.id for found in chosen]


def _refuse(db: DBDir, launcher: int) -> None:
    """Raise the error that says why a launcher can't be stopped from here."""
    head = Journal(db, launcher).head
    if head is not None and not head.is_here:
        raise Conflict(f"launcher {launcher} runs on {head.machine.node}: stop it there")
    raise NotFound(f"no launcher {launcher} runs on this machine; 'balsam status' lists the launchers")
