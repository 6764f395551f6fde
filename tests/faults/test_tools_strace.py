"""The audit of system calls finds the server that answers before its data is on disk."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from strace_check import audit_answers, parse, recorded

SERVER = """
import os, socket, sys
log = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
honest = sys.argv[2] == "honest"
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    at = 0
    while request := connection.recv(1000):
        at += os.pwrite(log, request, at)
        if honest:
            os.fdatasync(log)
        connection.sendall(b"a" * 100)
        if not honest:
            os.fdatasync(log)
"""


def audit_of(tmp_path, manner):
    log = tmp_path / "toy-wal"
    argv = [sys.executable, "-c", SERVER, log, manner]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(server.stdout.readline())
            with (
                socket.create_connection(("127.0.0.1", port), timeout=30) as client,
                recorded(server.pid, tmp_path / "trace") as trace,
            ):
                # The last answer may be on its way when the recording ends; the others are recorded before it begins.
                for _ in range(31):
                    client.sendall(b"q" * 100)
                    assert client.recv(1000) == b"a" * 100
        finally:
            server.kill()
    return audit_answers(trace.calls(), log="toy-wal")


def test_honest_server(tmp_path):
    audit = audit_of(tmp_path, "honest")
    assert audit.answers in {30, 31}
    assert audit.syncs == 31
    assert audit.violations == []


def test_hasty_server(tmp_path):
    audit = audit_of(tmp_path, "hasty")
    assert audit.answers in {30, 31}
    assert len(audit.violations) == audit.answers


def test_forbidden_tracing_is_a_reason_to_skip(tmp_path):
    with (
        pytest.raises(pytest.skip.Exception, match="tracing is not possible"),
        recorded(2**22 + 1, tmp_path / "trace"),
    ):
        pass


TRACE = """\
11 1.000001 recvfrom(9<TCP:[127.0.0.1:5000->127.0.0.1:6000]>, ""..., 8192, 0, NULL, NULL) = 100
11 1.000002 recvfrom(9<TCP:[127.0.0.1:5000->127.0.0.1:6000]>, 0x7f, 8192, 0, NULL, NULL) = -1 EAGAIN (Resource ...)
10 1.000003 pwrite64(4</db dir/db.sqlite3-wal>, ""..., 4096, 0) = 4096
10 1.000004 fdatasync(4</db dir/db.sqlite3-wal> <unfinished ...>
12 1.000005 write(7<anon_inode:[eventfd]>, ""..., 8) = 8
10 1.000006 <... fdatasync resumed>)      = 0
11 1.000007 sendto(9<TCP:[127.0.0.1:5000->127.0.0.1:6000]>, ""..., 120, 0, NULL, 0) = 120
11 1.000008 --- SIGCHLD {si_signo=SIGCHLD} ---
11 1.000009 sendto(9<TCP:[127.0.0.1:5000->127.0.0.1:6000]>, ""..., 42, 0, NULL, 0) = 42
"""


def test_calls_are_understood():
    calls = list(parse(TRACE.splitlines()))
    assert [(call.name, call.begins, call.result) for call in calls[4:10]] == [
        ("pwrite64", True, None),
        ("pwrite64", False, 4096),
        ("fdatasync", True, None),
        ("write", True, None),
        ("write", False, 8),
        ("fdatasync", False, 0),
    ]
    assert calls[6].file == calls[9].file == "/db dir/db.sqlite3-wal"
    assert calls[0].file == "TCP:[127.0.0.1:5000->127.0.0.1:6000]"
    assert calls[2].result is None
    assert calls[3].result == -1


def audited(*lines):
    return audit_answers(parse(lines), log="db.sqlite3-wal")


def test_answer_while_the_sync_is_under_way_is_too_early():
    lines = TRACE.splitlines()
    assert audited(*lines).violations == []
    early = [*lines[:5], lines[6], lines[5]]
    assert len(audited(*early).violations) == 1


def test_sync_that_fails_counts_for_nothing():
    assert len(audited(*TRACE.replace("resumed>)      = 0", "resumed>) = -1 EIO").splitlines()).violations) == 1


def test_sync_of_another_file_counts_for_nothing():
    assert (
        len(audited(*TRACE.replace("4096, 0", "4096,0").replace("-wal> <unf", "> <unf").splitlines()).violations) == 1
    )


def test_heartbeat_is_no_answer():
    assert audited(*TRACE.splitlines()).answers == 1


def test_answer_to_a_request_from_before_the_recording_is_not_judged():
    assert audited(*TRACE.splitlines()[5:]).answers == 0
