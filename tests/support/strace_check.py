"""Whether a server answers only after its data is on disk: its system calls, recorded by strace and judged.

::

    clients are connected and have had an answer; then
    with recorded(server_pid, tmp_path / "trace") as trace:
        ...  # writes, and nothing but writes
    audit = audit_answers(trace.calls(), log="db.sqlite3-wal")
    assert audit.violations == []
    assert audit.answers > 1000

For each answer (bytes sent on a TCP connection) there must have been, since the last request was received there, a
write to the log and then a whole fsync or fdatasync of it, from its begin to its return. Each client must wait for its
answer before it sends the next request. With one client this is exact. With several it is necessary, not sufficient
(the fsync may have been another batch's), but a server that answers too early is found within a few batches.

strace slows the server down, by about ten times. Where tracing is forbidden, the test is skipped with the reason.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SYNCS = {"fsync", "fdatasync"}
WRITES = {"write", "writev", "pwrite64", "pwritev", "pwritev2"}
SENDS = {"sendto", "sendmsg", "sendmmsg", *WRITES}
RECEIVES = {"recvfrom", "recvmsg", "recvmmsg", "read", "readv"}
SMALL = 44
"""Bytes: what is shorter is no answer but a heartbeat of ZeroMQ (40 or 42 if encrypted; Balsam's answers have 46)."""

_START = re.compile(r"(?P<thread>\d+) +(?P<at>\d+\.\d+) (?P<name>\w+)\((?P<rest>.*)")
_RESUMED = re.compile(r"(?P<thread>\d+) +(?P<at>\d+\.\d+) <\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)")
_FILE = re.compile(r"\d+<(?P<file>.*?)>(?:,|\)| <unfinished|$)")
_RESULT = re.compile(r"\) += (?P<result>-?\d+|\?)")
_UNFINISHED = "<unfinished ...>"


class Call(NamedTuple):
    """One end of a system call.

    Attributes:
        at: Seconds since the epoch.
        thread: Number of the thread.
        name: The system call.
        file: Path or connection behind its first argument, e.g. ``/db/db.sqlite3-wal`` or ``TCP:[...]``.
        begins: Whether this is its begin; else its return.
        result: What it returned; None at the begin.
    """

    at: float
    thread: int
    name: str
    file: str
    begins: bool
    result: int | None


def parse(lines: Iterable[str]) -> Iterator[Call]:
    """Give begin and return of each call, in the order in which strace saw them.

    Args:
        lines: Of ``strace -f -ttt -yy``.
    """
    waiting: dict[tuple[int, str], str] = {}  # calls that are under way: what they are about
    for line in lines:
        start, resumed = _START.match(line), _RESUMED.match(line)
        found = start or resumed
        if found is None:
            continue
        at, thread, name = float(found["at"]), int(found["thread"]), found["name"]
        if start:
            about = _FILE.match(start["rest"])
            file = about["file"] if about else ""
            yield Call(at, thread, name, file, True, None)
            if _UNFINISHED in line:
                waiting[thread, name] = file
                continue
        else:
            file = waiting.pop((thread, name), "")
        results = _RESULT.findall(found["rest"])
        result = int(results[-1]) if results and results[-1] != "?" else -1
        yield Call(at, thread, name, file, False, result)


@dataclass
class Trace:
    """A record of system calls."""

    path: Path

    def calls(self) -> list[Call]:
        """Return what has been recorded; call it after the end of the recording."""
        with self.path.open(errors="replace") as file:
            return list(parse(file))


@contextmanager
def recorded(pid: int, path: Path) -> Iterator[Trace]:
    """Record a running process with all its threads (and its later children) until the end of the block.

    Args:
        pid: The process.
        path: Where to write the record.
    """
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    names = ",".join(sorted(SYNCS | SENDS | RECEIVES))
    argv = ["strace", "-f", "-ttt", "-yy", "-s", "0", "-e", f"trace={names}", "-o", str(path), "-p", str(pid)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as strace:
        try:
            line = strace.stderr.readline()
            if "attached" not in line:
                pytest.skip(f"tracing is not possible here: {line.strip()}")
            yield Trace(path)
            strace.send_signal(signal.SIGINT)  # it lets the process go and writes its record to the end
            strace.communicate(timeout=60)
        finally:
            strace.kill()


@dataclass
class Audit:
    """What was found.

    Attributes:
        answers: Answers judged.
        syncs: Whole syncs of the log.
        violations: Answers that came too early: the calls by which they were sent.
    """

    answers: int = 0
    syncs: int = 0
    violations: list[Call] = field(default_factory=list)


def audit_answers(calls: Iterable[Call], *, log: str, small: int = SMALL) -> Audit:
    """Judge each answer; see the module's description.

    Args:
        calls: What was recorded.
        log: End of the log's path.
        small: Sends of fewer bytes are no answers.
    """
    audit = Audit()
    received: dict[str, int] = {}  # connection: when, counted in calls, something was received there last
    sending: dict[int, tuple[Call, int]] = {}  # thread: the send under way, when
    syncing: dict[int, int] = {}  # thread: when its sync began, if there was something to sync
    written = -1  # when the log was written to last
    durable: list[tuple[int, int]] = []  # pairs: what was written until then is durable since then
    for number, call in enumerate(calls, 1):
        on_log, on_tcp = call.file.endswith(log), call.file.startswith("TCP")
        if on_log and call.name in WRITES and call.begins:
            written = number
        elif on_log and call.name in SYNCS:
            if call.begins:
                syncing[call.thread] = written
            elif (until := syncing.pop(call.thread, -1)) >= 0 and call.result == 0:
                audit.syncs += 1
                durable.append((until, number))
        elif on_tcp and call.name in RECEIVES and not call.begins and (call.result or 0) >= small:
            received[call.file] = number
        elif on_tcp and call.name in SENDS:
            if call.begins:
                sending[call.thread] = (call, number)
            elif call.thread in sending:
                begun, when = sending.pop(call.thread)
                since = received.get(call.file)
                if since is not None and (call.result or 0) >= small:  # to a request that was recorded
                    audit.answers += 1
                    if not any(until > since and at < when for until, at in reversed(durable)):
                        audit.violations.append(begun)
        del durable[:-1000]
    return audit
