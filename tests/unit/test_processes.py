from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from balsam_core.system import processes
from balsam_core.system.processes import (
    children_of,
    cpu_seconds,
    descendants,
    end_process,
    is_alive,
    send_signal,
    start_of,
    started_at,
)
from balsam_core.testing.tools import wait_until

SLEEPER = [sys.executable, "-c", "import time; print(flush=True); time.sleep(100)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(100)",
]


def running(argv):
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


@pytest.fixture
def sleeper():
    with running(SLEEPER) as process:
        yield process
        process.kill()


def test_a_process_is_known_by_its_start(sleeper):
    start = start_of(sleeper.pid)
    assert is_alive(sleeper.pid, start)
    assert not is_alive(sleeper.pid, start + 0.01)
    assert started_at(sleeper.pid) == psutil.Process(sleeper.pid).create_time()
    assert start_of(os.getpid()) < start


def test_a_zombie_is_dead(sleeper):
    start = start_of(sleeper.pid)
    sleeper.kill()
    wait_until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE)
    assert start_of(sleeper.pid) is None
    assert not is_alive(sleeper.pid, start)


@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1, 2**40])
def test_impossible_processes_are_dead(pid):
    assert start_of(pid) is None
    assert not is_alive(pid, 1.0)
    assert not send_signal(pid, 1.0, signal.SIGKILL)
    assert end_process(pid, 1.0, [(15, 1.0)])


def test_only_the_proven_process_is_signalled(sleeper):
    start = start_of(sleeper.pid)
    assert not send_signal(sleeper.pid, start + 1, signal.SIGKILL)
    assert end_process(sleeper.pid, start + 1, [(15, 1.0)])
    assert sleeper.poll() is None
    assert send_signal(sleeper.pid, start, signal.SIGTERM)
    assert sleeper.wait(60) == -signal.SIGTERM


def test_a_process_that_cannot_be_seen_is_not_called_dead(sleeper, monkeypatch):
    start = start_of(sleeper.pid)
    monkeypatch.setattr(processes, "_read_stat", lambda pid: None)  # as with hidepid=2

    def denied(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", denied)
    assert is_alive(sleeper.pid, start)


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_ending_uses_the_signals_in_turn(sleeper, stopped):
    if stopped:
        sleeper.send_signal(signal.SIGSTOP)
    assert end_process(sleeper.pid, start_of(sleeper.pid), [(signal.SIGTERM, 60.0)])
    assert sleeper.wait(60) == -signal.SIGTERM


def test_ending_kills_what_does_not_stop():
    with running(STUBBORN) as process:
        assert end_process(process.pid, start_of(process.pid), [(signal.SIGTERM, 0.05)])
        assert process.wait(60) == -signal.SIGKILL


@pytest.fixture(params=["as it is", "without lists of children"])
def _kernel(request, monkeypatch):
    if request.param != "as it is":
        monkeypatch.setattr(processes, "_has_children_files", lambda: False)


FAMILY = """
import subprocess, sys, threading

def start():
    child = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '100'])"]
    started.append(subprocess.Popen(child))

started = []
threads = [threading.Thread(target=start), threading.Thread(target=start)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*[child.pid for child in started], flush=True)
input()
"""


@pytest.mark.usefixtures("_kernel")
def test_descendants_are_found_whichever_thread_has_started_them():
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        children = {int(word) for word in process.stdout.readline().split()}
        assert set(children_of(process.pid)) == children
        wait_until(lambda: len(descendants(process.pid)) == 4)
        found = dict(descendants(process.pid))
        assert found.keys() > children
        assert {one.pid for one in psutil.Process(process.pid).children(recursive=True)} == found.keys()
        for pid, start in found.items():
            assert end_process(pid, start, [])
        assert descendants(process.pid) == []
        process.stdin.close()


@pytest.mark.usefixtures("_kernel")
def test_cpu_time_includes_descendants():
    burn = "import os\nwhile os.times().user < 0.2: pass\n"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn + 'print(flush=True); input()'!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        used = cpu_seconds(process.pid)
        process.stdin.close()
    assert used >= 0.15
    assert cpu_seconds(process.pid) == 0.0
