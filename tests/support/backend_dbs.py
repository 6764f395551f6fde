"""DBs whose server is somebody else's program, PostgreSQL's and MariaDB's, for tests that hurt it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from db_servers import skip_kind
from exact import check, rows_by_api
from served_db import ServedDB

from balsam_core.errors import BackendError
from balsam_core.system import processes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from exact import Report, Writers

__all__ = ["ROOT", "SERVER_KINDS", "foreign_process", "hold", "make_db", "report_of"]

SERVER_KINDS = ("postgres", "mysql")
ROOT = Path(__file__).parents[2]


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
        skip_kind(kind, err)
    try:
        yield db
    finally:
        db.close()
        shutil.rmtree(path)


def report_of(clients: Writers, db: ServedDB, name: str = "w") -> Report:
    """Compare what writers of this name were told with what is stored; the DB must be served."""
    return check(clients.journals, [row for row in rows_by_api(db.path) if row.name.startswith(f"{name}")])


@contextlib.contextmanager
def foreign_process(cwd: Path | None = None) -> Iterator[tuple[int, float]]:
    """Give process id and start of a process that has nothing to do with us; any signal would end it."""
    with subprocess.Popen(["sleep", "600"], cwd=cwd) as process:
        try:
            yield process.pid, processes.start_of(process.pid) or 0.0
            assert process.poll() is None, f"the foreign process was ended by signal {-process.returncode}"
        finally:
            process.send_signal(signal.SIGKILL)


def hold(seconds: float) -> None:
    """Let time pass that is the fault itself, e.g. of a frozen server."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
