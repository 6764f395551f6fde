"""A real DB behind a real ``balsam dbserver``, started as a user does, for tests that hurt it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from balsam_program import BALSAM, TIMEOUT, child

from balsam_core.admin.initialise import initialise
from balsam_core.dbdir import address
from balsam_core.dbdir.lease import LeaseObserver
from balsam_core.system import processes
from balsam_core.testing import tools
from balsam_core.watchdog import control

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import psutil

    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.lease import Lease
    from balsam_core.testing.cli import Result

__all__ = ["ADDRESS_DAMAGES", "ServedDB", "listens"]


class ServedDB:
    """A DB and its server. Nothing of it outlives :meth:`close`: each process is ended by the proof that it is ours.

    Args:
        path: Where the DB is made, or is.
        env: Added to the environment of the watchdog and the server, e.g. ``shims.preload(...)``.
        db_type: Its type.
        options: For ``balsam init``.
    """

    def __init__(
        self,
        path: Path,
        env: Mapping[str, str] | None = None,
        *,
        db_type: str = "sqlite",
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.dir: DBDir = initialise(path, db_type, options).db
        self.path = path
        self.env = dict(env or {})
        self._seen: set[tuple[int, float]] = set()

    def command(self, *words: str, env: Mapping[str, str] | None = None) -> Result:
        """Run ``balsam dbserver WORDS`` on this DB."""
        return child("dbserver", *words, "--path", self.path, env={**self.env, **(env or {})})

    def start(self, *words: str) -> Address:
        """Start the server and return its address."""
        done = self.command(*words)
        assert done.code == 0, done
        return self.address

    def start_together(self, number: int) -> float:
        """Start the server so many times at once; one start must win, and all must tell its address.

        Returns:
            The seconds until all had ended.
        """
        words = [*BALSAM, "dbserver", "-o", "json", "--path", str(self.path)]
        began = time.monotonic()
        starters = [
            subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **self.env}
            )
            for _ in range(number)
        ]
        ended = [starter.communicate(timeout=TIMEOUT) for starter in starters]
        seconds = time.monotonic() - began
        assert [starter.returncode for starter in starters] == [0] * number, ended
        shown = [json.loads(out) for out, _ in ended]
        assert sorted(one.pop("already") for one in shown) == [False, *[True] * (number - 1)]
        assert all(one == shown[0] for one in shown)
        assert (shown[0]["pid"], shown[0]["port"]) == (self.server, self.address.port)
        return seconds

    def stop(self) -> None:
        """Stop the server as a user does."""
        done = self.command("--stop")
        assert done.code == 0, done

    @property
    def address(self) -> Address:
        """The published address."""
        found = address.find(self.dir)
        assert found is not None, "no server is published"
        assert found.state == "running", address.failure(self.dir)
        self._seen.add((found.pid, processes.start_of(found.pid) or 0.0))
        return found

    @property
    def lease(self) -> Lease:
        """The watchdog's lease."""
        lease = LeaseObserver(self.dir).observe().lease
        assert lease is not None, "there is no lease"
        self._seen |= {(lease.pid, lease.start), (lease.child_pid, lease.child_start)}
        return lease

    @property
    def server(self) -> int:
        """Process id of the server."""
        return self.address.pid

    @property
    def watchdog(self) -> int:
        """Process id of the watchdog."""
        return self.lease.pid

    def processes(self) -> list[psutil.Process]:
        """Return the watchdog, the server and the server's children."""
        return tools.server_processes(self.dir)

    def kill_all(self) -> tuple[Lease, Address | None]:
        """SIGKILL all of them at once; returns lease and published address, which stay behind."""
        left = self.lease, address.read(self.dir)
        tools.kill_server(self.dir)
        return left

    def kill_server(self) -> Address:
        """SIGKILL the server and return its address."""
        before = self.address
        os.kill(before.pid, signal.SIGKILL)
        return before

    def wait_for_another(self, before: Address, *, seconds: float = 60.0) -> Address:
        """Wait until another server than this one is published."""
        tools.wait_until(
            lambda: (a := address.read(self.dir)) is not None and a.generation > before.generation,
            "a new server",
            seconds=seconds,
        )
        return self.address

    def close(self) -> None:
        """Stop the server; what doesn't obey is killed."""
        for look in (lambda: self.lease, lambda: self.address):
            with contextlib.suppress(AssertionError):
                look()
        try:
            if control.has_server(self.dir):
                self.command("--stop")
        finally:
            for pid, start in self._seen:
                if pid not in {0, os.getpid()}:
                    processes.end_process(pid, start, [(int(signal.SIGKILL), 10.0)])


def listens(where: Address) -> bool:
    """Say whether anybody accepts connections there."""
    try:
        socket.create_connection((where.host, where.port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def _swap(file: Path, content: Callable[[bytes], bytes]) -> None:
    """Change a file in place, as no program of ours does."""
    file.write_bytes(content(file.read_bytes()))


def _link(file: Path) -> None:
    """Put a symbolic link in its place."""
    file.unlink()
    file.symlink_to("/dev/null")


ADDRESS_DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda file: file.unlink(),
    "emptied": lambda file: _swap(file, lambda _: b""),
    "cut": lambda file: _swap(file, lambda data: data[: len(data) // 2]),
    "garbled": lambda file: _swap(file, lambda data: bytes(255 - byte for byte in data)),
    "zeroed": lambda file: _swap(file, lambda data: bytes(len(data))),
    "without a state": lambda file: _swap(file, lambda _: b"{}"),
    "a link": _link,
}
"""How ``dbwriter_address`` may be lost or damaged: functions of the file."""
