"""DBs whose server is somebody else's program, PostgreSQL's and MariaDB's, for tests that hurt it.

All are made in the directory of the test run's guard, a process that sees the end of the run by the end of a pipe,
kill -9 included: it then ends every watchdog and server that the run has started, and removes the directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psutil
import pytest
from exact import check, rows_by_api
from resources import is_alive
from served_db import ServedDB
from waiting import wait_until

from balsam_core.errors import BackendError
from balsam_core.system import processes
from balsam_core.testing import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from exact import Report, Writers

__all__ = [
    "BALSAM",
    "KINDS",
    "ROOT",
    "hold",
    "lacking",
    "make_db",
    "marked",
    "one_line",
    "processes_of",
    "report_of",
    "run_directory",
    "send",
    "stop_all",
    "stranger",
]

KINDS = ("postgres", "mysql")
ROOT = Path(__file__).parents[2]
BALSAM = [sys.executable, "-W", "error", "-m", "balsam_core.cli"]
_REQUIRE = "BALSAM_REQUIRE_BACKENDS"


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """Give a directory for DBs; with the end of this process it is removed, and what was :func:`marked` is ended."""
    directory = Path(tempfile.mkdtemp(prefix="balsam-faults-")).resolve()
    guard = subprocess.Popen(
        [sys.executable, "-P", run.__file__, str(directory)], stdin=subprocess.PIPE, cwd="/", start_new_session=True
    )
    try:
        yield directory
    finally:
        guard.stdin.close()
        guard.wait()


@contextlib.contextmanager
def marked(directory: Path) -> Iterator[None]:
    """Let all processes that are started inside the block end with the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(run.MARK, str(directory))
        yield


def lacking(kind: str, why: object) -> NoReturn:
    """Skip the test, or let it fail where the kind is demanded."""
    if kind in os.environ.get(_REQUIRE, "").replace(" ", "").split(","):
        pytest.fail(f"{_REQUIRE} asks for {kind}, but {why}", pytrace=False)
    pytest.skip(f"{kind}: {why}")


@contextlib.contextmanager
def make_db(
    kind: str, path: Path, *, env: Mapping[str, str] | None = None, options: Mapping[str, str] | None = None
) -> Iterator[ServedDB]:
    """Give a DB, not yet served; in the end nothing of it runs and its files are removed."""
    try:
        db = ServedDB(path, env, db_type=kind, options=options)
    except BackendError as err:
        if "install" not in str(err) or "failed in" in str(err):  # else its plugin, its driver or its programs lack
            raise
        lacking(kind, err)
    try:
        yield db
    finally:
        db.close()
        shutil.rmtree(path)


def report_of(clients: Writers, db: ServedDB, name: str = "w") -> Report:
    """Compare what writers of this name were told with what is stored; the DB must be served."""
    return check(clients.journals, [row for row in rows_by_api(db.path) if row.name.startswith(f"{name}")])


def processes_of(db: ServedDB) -> list[psutil.Process]:
    """Return the watchdog, the server and the server's children."""
    watchdog = psutil.Process(db.watchdog)
    return [watchdog, *watchdog.children(recursive=True)]


def send(number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
    """Signal processes; some may be gone by now."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def stop_all(db: ServedDB) -> None:
    """SIGKILL the watchdog and all of its server at once; the address stays behind."""
    everybody = processes_of(db)
    send(signal.SIGSTOP, everybody)
    send(signal.SIGKILL, everybody)
    wait_until(lambda: not any(is_alive(process.pid) for process in everybody), "their end", seconds=10)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error of a command that had to fail."""
    assert done.returncode not in {0, 1}, done
    assert done.stderr.startswith("Error: "), done
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip()


@contextlib.contextmanager
def stranger(cwd: Path | None = None) -> Iterator[tuple[int, float]]:
    """Give process id and start of a process that has nothing to do with us; any signal would end it."""
    with subprocess.Popen(["sleep", "600"], cwd=cwd) as process:
        try:
            yield process.pid, processes.start_of(process.pid) or 0.0
            assert process.poll() is None, f"the stranger was ended by signal {-process.returncode}"
        finally:
            process.send_signal(signal.SIGKILL)


def hold(seconds: float) -> None:
    """Let time pass that is the fault itself, e.g. of a frozen server."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
