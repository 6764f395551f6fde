"""``balsam_init_db``, and ``balsam init`` around it."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from balsam_core import open_db
from balsam_core.dbdir.directory import CONFIG_NAME, DBDir
from balsam_core.model.job import Job
from balsam_core.plugin_types import ServerPolicy
from balsam_core.testing.cli import balsam
from balsam_core.watchdog import control

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.backends.registry import Backend
    from balsam_core.testing.fixtures import StoppedDB
    from balsam_core.testing.run import SuiteRun

INVALID_INPUT = 5  # exit code
OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO
ODD = 'it\'s "odd" (50%) $HOME; ünï 🎈?#[x]'


def serve(backend: Backend, db: DBDir) -> None:
    """Start what open_db needs."""
    if backend.identity.server is ServerPolicy.REQUIRED or backend.served_only:
        control.start(db)


def test_init_makes_a_db(stopped_db: StoppedDB, backend: Backend) -> None:
    printed = json.loads(stopped_db.init_output)
    assert (printed["db_type"], printed["created"], printed["server"]) == (backend.identity.name, True, None)
    assert printed["id"] == stopped_db.directory.id


def test_init_leaves_no_process(stopped_db: StoppedDB, suite_run: SuiteRun) -> None:
    assert not suite_run.remaining_processes(stopped_db.path)


def test_what_holds_secrets_is_open_to_nobody_else(stopped_db: StoppedDB) -> None:
    folders = [stopped_db.path, *(path for path in stopped_db.path.iterdir() if path.is_dir())]
    for path in [*folders, *stopped_db.directory.keys.iterdir()]:
        assert not stat.S_IMODE(path.lstat().st_mode) & OPEN_TO_OTHERS, f"{path} has mode {path.lstat().st_mode:o}"


def test_an_unknown_option_is_refused_and_nothing_is_made(suite_run: SuiteRun, backend: Backend) -> None:
    path = suite_run.directory / "refused"
    line = balsam.refused(
        "init", path, "--db-type", backend.identity.name, "--option", "no_such_option=1", code=INVALID_INPUT
    )
    assert "no_such_option" in line
    assert not path.exists()


def test_a_refresh_changes_nothing(stopped_db: StoppedDB, backend: Backend) -> None:
    before = stopped_db.directory
    serve(backend, before)
    with open_db(stopped_db.path) as db:
        (job,) = db.jobs.add(Job(command="x", name="kept"))
    for stop in (False, True):  # beside its server, and without
        if stop:
            control.stop(before)
        for _ in range(2):
            assert balsam.good("init", stopped_db.path, "-o", "json").json["created"] is False
    assert stopped_db.directory == before, "the settings changed"
    serve(backend, before)
    with open_db(stopped_db.path) as db:
        assert db.jobs.get(job).name == "kept"


def test_a_moved_directory_is_the_same_db_at_any_path(
    stopped_db: StoppedDB, backend: Backend, suite_run: SuiteRun
) -> None:
    serve(backend, stopped_db.directory)
    with open_db(stopped_db.path) as db:
        (job,) = db.jobs.add(Job(command="x", name="moved"))
    control.stop(stopped_db.directory)
    plain = "plain-paths" in backend.identity.capabilities
    odd = suite_run.directory / (ODD.replace("?", "") if plain else ODD) / "db"
    odd.parent.mkdir()
    stopped_db.path.rename(odd)
    try:
        directory = DBDir.open(odd)
        if backend.identity.server is not ServerPolicy.NONE:
            control.start(directory)
        with open_db(odd) as db:
            assert db.jobs.get(job).name == "moved"
            db.jobs.add(Job(command="x"))
        assert control.stop(directory) == ("none" if backend.identity.server is ServerPolicy.NONE else "stopped")
        balsam.good("init", odd)  # a refresh there
    finally:
        control.stop(DBDir.open(odd))
        odd.rename(stopped_db.path)


def test_init_killed_at_any_moment_leaves_nothing_or_a_db(
    suite_run: SuiteRun, backend: Backend, options: dict[str, str]
) -> None:
    words = [word for name, value in options.items() for word in ("--option", f"{name}={value}")]

    def init(path: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "balsam_core.cli", "init", path, "--db-type", backend.identity.name, *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    began = time.monotonic()
    with init(suite_run.directory / "whole") as whole:
        _, error = whole.communicate()
        assert whole.returncode == 0, error
    lasts = time.monotonic() - began
    for part in (0.4, 0.6, 0.8, 0.95):
        path = suite_run.directory / f"killed-{part}"
        with init(path) as process:
            try:
                process.wait(lasts * part)
            except subprocess.TimeoutExpired:
                process.kill()
        left = suite_run.remaining_processes(path, seconds=30)
        assert not left, f"killed after {part:.0%}, it leaves processes: {left}"
        if (path / CONFIG_NAME).exists():
            DBDir.open(path)
        else:
            assert not path.exists() or not any(one.name[0] != "." for one in path.iterdir()), list(path.iterdir())
        with init(path) as again:
            _, error = again.communicate()
            assert again.returncode == 0, f"after a kill at {part:.0%}, init fails: {error.decode()}"
