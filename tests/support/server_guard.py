"""Keep one throw-away database server alive exactly as long as the test run that asked for it.

Run as ``python -I server_guard.py SPEC`` with a pipe from the test run as standard input. SPEC is JSON: ``prepare`` (a
list of argvs that are run first, one after the other), ``argv`` (the server, in the foreground), ``stop_signal``,
``directory`` (all files of the server; deleted at the end) and ``log`` (a file in it that gets all output).

The end of that pipe is the end of the test run, however it came, kill -9 included: the guard then stops the child,
waits for it, and deletes the directory. A process that the test run forked may hold the pipe open for longer, so the
guard watches its parent by a pidfd too. Should the guard itself be killed, the server has a parent-death signal: the
caller puts ``setpriv --pdeathsig`` into the argv. It knows nothing of databases.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
from pathlib import Path

STOP_SECONDS = 10
"""How long a server may take over its clean stop before it is killed: the data is thrown away anyway."""


class Orphaned(BaseException):
    """The test run has ended."""


def main() -> int:
    """Run the server of the SPEC until the test run ends; 1 if a command ended by itself first."""
    spec = json.loads(sys.argv[1])
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _end)
    try:
        with _test_run_watched() as watched, Path(spec["log"]).open("ab") as log:
            for argv in spec["prepare"]:
                if _run(argv, watched, log, signal.SIGKILL) != 0:
                    return 1
            _run(spec["argv"], watched, log, signal.Signals(spec["stop_signal"]))
            return 1
    except Orphaned:
        shutil.rmtree(spec["directory"], ignore_errors=True)
        return 0


def _end(*_ignored: object) -> None:
    raise Orphaned


@contextlib.contextmanager
def _test_run_watched():
    """Give a selector that becomes readable when the pipe's other end or the parent process is gone."""
    with selectors.DefaultSelector() as watched:
        watched.register(sys.stdin.fileno(), selectors.EVENT_READ, "test run")
        if not hasattr(os, "pidfd_open"):
            yield watched
            return
        try:
            parent = os.pidfd_open(os.getppid())
        except ProcessLookupError:
            raise Orphaned from None
        watched.register(parent, selectors.EVENT_READ, "test run")
        try:
            yield watched
        finally:
            os.close(parent)


def _run(argv, watched, log, stop_signal) -> int:
    """Run one command to its end; stop it and raise Orphaned when the test run ends before."""
    child = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd="/", start_new_session=True
    )
    try:
        while True:
            # Without pidfd (not Linux) the exit of the child is noticed within the timeout.
            if watched.select(timeout=0.2):
                raise Orphaned
            if child.poll() is not None:
                return child.returncode
    finally:
        _stop(child, stop_signal)


def _stop(child, stop_signal) -> None:
    """End the child and everything in its process group."""
    # A second SIGTERM from an impatient caller must not interrupt this.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)
    if child.poll() is None:
        child.send_signal(stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _end)


if __name__ == "__main__":
    sys.exit(main())
