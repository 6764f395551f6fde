"""Two hosts are two hosts: names, addresses, process ids; one file system; nothing survives the test run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from namespaces import cut_between, join_again, limit_rate

from balsam_core.testing.tools import wait_until

SUPPORT = Path(__file__).parents[1] / "support"
LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 7777)) as listener:
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        connection.sendall(b"hello")
        connection.close()
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 7777), timeout=float(sys.argv[2])) as connection:
    print(connection.recv(100).decode())
"""


def test_each_host_is_its_own(hosts):
    code = "import os, socket, pathlib; print(socket.gethostname(), os.getpid() < 100)"
    for host in hosts:
        assert host.good([sys.executable, "-c", code]) == f"{host.name} True\n"
        assert host.good(["cat", "/proc/sys/kernel/random/boot_id"]).strip() == host.boot_id
    assert socket.gethostname() not in {"alpha", "beta"}
    assert hosts[0].boot_id != hosts[1].boot_id


def test_files_are_shared(hosts, tmp_path):
    alpha, beta = hosts
    alpha.good(["sh", "-c", 'echo shared > "$1"', "sh", tmp_path / "file"])
    assert beta.good(["cat", tmp_path / "file"]) == "shared\n"
    assert (tmp_path / "file").stat().st_uid == os.geteuid()


def test_hosts_talk_are_cut_off_and_joined_again(hosts):
    alpha, beta = hosts
    with alpha.running([sys.executable, "-c", LISTEN, alpha.address]) as server:
        assert server.stdout.readline() == "listening\n"

        def ask(host, address, seconds):
            return host.run([sys.executable, "-c", ASK, address, seconds])

        assert ask(beta, alpha.address, 10).stdout == "hello\n"
        cut_between(alpha, beta)
        assert "timed out" in ask(beta, alpha.address, 0.3).stderr
        join_again(alpha, beta)
        assert ask(beta, alpha.address, 10).stdout == "hello\n"
        limit_rate(alpha, "1mbit")
        assert ask(beta, alpha.address, 10).stdout == "hello\n"
        assert "refused" in ask(beta, "127.0.0.1", 10).stderr, "each has its own loopback"


def test_process_ids_are_the_host_s(hosts):
    alpha, beta = hosts
    with alpha.running(["sh", "-c", "echo $$; exec sleep 1000"]) as sleeper:
        pid = int(sleeper.stdout.readline())
        alpha.signal(pid, "STOP")
        wait_until(lambda: "stopped" in alpha.good(["grep", "State", f"/proc/{pid}/status"]))
        assert "sleep" not in beta.good(["sh", "-c", "cat /proc/[0-9]*/comm"])
        alpha.signal(pid, "CONT")
        wait_until(lambda: "sleeping" in alpha.good(["grep", "State", f"/proc/{pid}/status"]))


def detached_sleeper(alpha):
    """Start a process that nobody waits for; returns its number outside."""
    mark = str(10**6 + os.getpid())
    alpha.good(["sh", "-c", f"setsid sleep {mark} >/dev/null 2>&1 </dev/null &"])
    return wait_until(lambda: [one for one in psutil.process_iter(["cmdline"]) if mark in (one.info["cmdline"] or [])])


def test_crash_ends_everything_there(hosts):
    alpha, beta = hosts
    (sleeper,) = detached_sleeper(alpha)
    alpha.crash()
    wait_until(lambda: not sleeper.is_running())
    assert beta.good(["echo", "alive"]) == "alive\n"


def test_nothing_survives_a_killed_test_run(tmp_path):
    code = f"""
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {str(SUPPORT)!r})
    from namespaces import two_hosts
    with two_hosts(Path({str(tmp_path)!r})) as (alpha, beta):
        alpha.good(["sh", "-c", "setsid sleep 1234567 >/dev/null 2>&1 </dev/null &"])
        print(alpha._pid, beta._pid, flush=True)
        sys.stdin.read()
    """
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        numbers = run.stdout.readline().split()
        if not numbers:
            pytest.skip("namespaces can't be made here")
        inside = [psutil.Process(int(number)) for number in numbers]
        inside += [child for one in inside for child in one.children(recursive=True)]
        run.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in inside))
