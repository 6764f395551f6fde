"""A test run that is interrupted, or killed, leaves no server, no port and no directory behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from amounts import FULL
from backend_dbs import ROOT
from db_servers import skip_kind
from resources import wait_for_end

from balsam_core.testing.tools import wait_until

VICTIM = """
import json, signal
import backend_dbs
from balsam_core.testing.run import Guard

def test_victim():
    directory = Guard("balsam-faults-").directory
    with backend_dbs.make_db({kind!r}, directory / "db") as db:
        db.start()
        pids = [process.pid for process in db.processes()]
        print(json.dumps([str(directory), db.address.port, pids]), flush=True)
        signal.pause()
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL] if FULL else [signal.SIGKILL])
def test_interrupted_run_leaves_nothing(kind, tmp_path, verdict, signum):
    """A test run is interrupted or killed, whose servers are detached: no process, port or directory is left (T07)."""
    test = tmp_path / "test_victim.py"
    test.write_text(VICTIM.format(kind=kind))
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-c",
        os.devnull,
        "--rootdir",
        tmp_path,
        "-p",
        "no:cacheprovider",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support")}
    with subprocess.Popen(
        [*words, test], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=tmp_path
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("["):
                break
        if process.poll() is not None or not lines[-1].startswith("["):
            skip_kind(kind, lines)
        directory, port, pids = json.loads(lines[-1])
        process.send_signal(signum)
        process.stdout.read()
    wait_for_end(pids, seconds=60)
    wait_until(lambda: not Path(directory).exists(), "the end of the directory")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
    verdict("T07", f"{kind}: test run ended by {signum.name}", "no process, port or directory is left")
