"""One run of the suite: a directory and a mark that every process has which the run starts.

A watchdog leaves its starter's process group and outlives it, so that an interrupted run would leave servers behind.
The guard, a process of its own, sees the end of the run by the end of a pipe, however it came, kill -9 included: it
ends every process that inherited the mark in its environment, and their children, and removes the directory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

__all__ = ["MARK", "Run", "processes_of"]

MARK = "BALSAM_TESTING_RUN"
STOP_SECONDS = 20.0  # for servers to stop by themselves before they are killed
POLL = 0.05


def processes_of(directory: Path) -> list[psutil.Process]:
    """Return the living processes that a run has started, whoever their parent is now, with all their children."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if _is_of(process, directory) and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
                # A server may write over its environment to show what it does.
                found.update((child.pid, child) for child in process.children(recursive=True))
        except psutil.Error:  # gone, or another user's
            continue
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _lives(process)]


def _is_of(process: psutil.Process, directory: Path) -> bool:
    """Say whether a process has the mark, or works in the directory as orphans do that wrote over their environment."""
    return process.environ().get(MARK) == str(directory) or Path(process.cwd()).is_relative_to(directory)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Run:
    """The directory of a run, with its guard."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="balsam-testing-")).resolve()
        self._guard = subprocess.Popen(
            [sys.executable, "-P", __file__, str(self.directory)],
            stdin=subprocess.PIPE,
            cwd="/",
            start_new_session=True,  # Ctrl-C is not for it
        )
        # Only what this process starts has them: its own environment is read as it was at its start.
        state = self.directory / "user"
        os.environ[MARK] = str(self.directory)
        for name in ("CONFIG", "DATA", "STATE"):
            os.environ[f"XDG_{name}_HOME"] = str(state / name.lower())
        for name in ("BALSAM_DB_PATH", "BALSAM_JOB_ID"):
            os.environ.pop(name, None)

    def left(self, about: Path | None = None, *, seconds: float = 5.0) -> list[str]:
        """Return what still runs of all that was started; waits for what is about to end.

        Args:
            about: A DB directory: only processes that name it on their command line, or work in it.
            seconds: How long to wait.
        """
        deadline = time.monotonic() + seconds
        while True:
            told = [_told(process) for process in processes_of(self.directory)]
            rest = [one for one in told if about is None or about.name in one]  # also where it was made aside
            if not rest or time.monotonic() > deadline:
                return rest
            time.sleep(POLL)

    def close(self) -> None:
        """Let the guard clean up, and wait for it."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()


def _told(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())} (in {process.cwd()})"
    except psutil.Error:
        return str(process.pid)


def clean_up(directory: Path) -> None:
    """End all that a run has started, the servers cleanly if they can, and remove its directory."""
    deadline = time.monotonic() + STOP_SECONDS
    asked: set[int] = set()
    while rest := processes_of(directory):
        late = time.monotonic() > deadline
        for process in rest:
            # The watchdogs stop their servers; to ask those themselves would start them again.
            if late or (process.pid not in asked and _is_top(process, rest)):
                asked.add(process.pid)
                try:
                    process.send_signal(signal.SIGKILL if late else signal.SIGTERM)
                    process.send_signal(signal.SIGCONT)
                except psutil.Error:
                    continue
        time.sleep(POLL)
    shutil.rmtree(directory, ignore_errors=True)


def _is_top(process: psutil.Process, among: list[psutil.Process]) -> bool:
    try:
        return process.ppid() not in {other.pid for other in among}
    except psutil.Error:
        return False


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()  # until the run has ended
    clean_up(Path(sys.argv[1]))
