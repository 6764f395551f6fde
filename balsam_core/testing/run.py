"""One run of tests: a directory, and a mark that every process has which the run starts.

A watchdog leaves its starter's process group and outlives it, so that an interrupted run would leave servers behind.
The guard, a process of its own, sees the end of the run, kill -9 included. It then ends every process that inherited
the mark in its environment, and their children, and removes the directory.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

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


class Guard:
    """A temporary directory, which is removed at the end of the run together with all processes of the run.

    From now on all that this process starts has the mark.
    """

    def __init__(self, prefix: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(self.directory)],
            stdin=subprocess.PIPE,
            cwd="/",
            start_new_session=True,  # Ctrl-C is not for it
        )
        # This process doesn't count: its environment is read as it was at its start.
        os.environ[MARK] = str(self.directory)

    def close(self) -> None:
        """Let the guard clean up, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class SuiteRun(Guard):
    """A run of the suite, away from the user's own DBs and settings."""

    def __init__(self) -> None:
        super().__init__("balsam-testing-")
        home = self.directory / "user"
        for name in ("CONFIG", "DATA", "STATE"):
            os.environ[f"XDG_{name}_HOME"] = str(home / name.lower())
        for name in ("BALSAM_DB_PATH", "BALSAM_JOB_ID"):
            os.environ.pop(name, None)

    def remaining_processes(self, path: Path | None = None, *, seconds: float = 5.0) -> list[str]:
        """Return what still runs of all that was started; waits for what is about to end.

        With a DB directory only processes count that name it on their command line, or work in it.
        """
        deadline = time.monotonic() + seconds
        while True:
            running = [_description(process) for process in processes_of(self.directory)]
            rest = [one for one in running if path is None or path.name in one]  # also where it was made aside
            if not rest or time.monotonic() > deadline:
                return rest
            time.sleep(POLL)


def _description(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())} (in {process.cwd()})"
    except psutil.Error:
        return str(process.pid)


def wait_for_end_of_run() -> None:
    """Wait until the pipe from the run ends, or the run itself: its forked children may hold the pipe for longer."""
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # the parent is gone, or the system can't
                selector.register(os.pidfd_open(os.getppid()), selectors.EVENT_READ)
        selector.select()


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
    wait_for_end_of_run()
    clean_up(Path(sys.argv[1]))
