"""Our backends keep the contract: each passes the suite, by the command that third parties run on theirs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from db_servers import KINDS, skip_kind

from balsam_core.admin.initialise import initialise
from balsam_core.errors import BackendError
from balsam_core.testing.run import processes_of
from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

COMMAND = [sys.executable, "-m", "balsam_core.testing"]


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """Start the command; its files are in the folder."""
    return subprocess.Popen(
        [*COMMAND, *words],
        env={**os.environ, "TMPDIR": str(folder)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, BackendError | subprocess.Popen[str]]]:
    """The suite on each backend, all at once: they wait for disks and processes more than they compute."""
    started: dict[str, BackendError | subprocess.Popen[str]] = {}
    with contextlib.ExitStack() as stack:
        for db_type in KINDS:
            folder = tmp_path_factory.mktemp(db_type)
            try:
                initialise(folder / "probe", db_type)
            except BackendError as err:
                started[db_type] = err
            else:
                process = start([db_type, "-q", "-W", "error"], folder)
                stack.enter_context(process)
                stack.callback(process.kill)
                started[db_type] = process
        yield started


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("db_type", KINDS)
def test_backend_keeps_the_contract(
    db_type: str, runs: dict[str, BackendError | subprocess.Popen[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = runs[db_type]
    if isinstance(run, BackendError):
        skip_kind(db_type, run)
    out, _ = run.communicate()
    if run.returncode:
        pytest.fail(f"the suite fails for {db_type}:\n{out[-20_000:]}", pytrace=False)
    assert not list(tmp_path_factory.getbasetemp().glob(f"{db_type}*/balsam-testing-*")), (
        "the run has left its directory"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with start(["sqlite", "-k", "test_server"], tmp_path) as process:

        def run_with_server() -> Path | None:
            for directory in tmp_path.glob("balsam-testing-*"):
                for one in processes_of(directory):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if "balsam_core.proxy" in one.cmdline():
                            return directory
            return None

        directory = wait_until(run_with_server, "a running server")
        if number is signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.kill()
        process.communicate()
    assert process.returncode != 0
    wait_until(lambda: not directory.exists(), "the removal of the run's directory")
    assert not processes_of(directory)


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    def said(*words: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [*COMMAND, *words], env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        return done.stdout + done.stderr

    assert "there is no db type 'nosuch'" in said("nosuch")
    assert "usage: python -m balsam_core.testing DBTYPE" in said()
    (tmp_path / "pytest.py").write_text("raise ImportError")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; old = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'pytest' else old(name, *more)"
    )
    told = said("sqlite", env={"PYTHONPATH": str(tmp_path)})
    assert told == "balsam_core.testing: pytest is not installed; run: pip install 'balsam-core[testing]'\n"
