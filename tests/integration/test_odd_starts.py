"""The tests of this project may be started in any way: what they start has default signal dispositions all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

IGNORED = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP}
CONFTEST = Path(__file__).parents[1] / "conftest.py"
TEST = """
import signal
import subprocess

# Not those that the C library keeps for itself: a program can't set them.
SETTABLE = sum(1 << number - 1 for number in signal.valid_signals())

def test_dispositions():
    status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    masks = dict(line.split(":\\t") for line in status.splitlines() if line.startswith(("SigIgn", "SigBlk")))
    assert {int(mask, 16) & SETTABLE for mask in masks.values()} == {0}, masks
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("workers", [0, 1])
def test_what_tests_start_has_default_signals(tmp_path, workers):
    (tmp_path / "conftest.py").symlink_to(CONFTEST)
    (tmp_path / "test_it.py").write_text(TEST)

    def ignore_and_block():
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)

    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        str(workers),
        "--rootdir",
        tmp_path,
    ]
    done = subprocess.run(
        [*command, "-c", os.devnull, tmp_path],
        env={**os.environ, "PYTHONPATH": str(CONFTEST.parent / "support")},
        preexec_fn=ignore_and_block,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
