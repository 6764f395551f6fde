"""A real DB behind a real ``balsam dbserver``, started as a user does, for tests that hurt it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from waiting import wait_until

from balsam_core.admin.initialise import initialise
from balsam_core.dbdir import address
from balsam_core.system import processes
from balsam_core.watchdog import control
from balsam_core.watchdog.lease import LeaseObserver

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.watchdog.lease import Lease

__all__ = ["ServedDB"]

TIMEOUT = 90.0  # seconds for a command on a busy machine


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

    def command(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run ``balsam dbserver WORDS`` on this DB."""
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "balsam_core.cli", "dbserver", *words, "--path", str(self.path)],
            env={**os.environ, **self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    def start(self, *words: str) -> Address:
        """Start the server and return its address."""
        done = self.command(*words)
        assert done.returncode == 0, done.stderr
        return self.address

    def stop(self) -> None:
        """Stop the server as a user does."""
        done = self.command("--stop")
        assert done.returncode == 0, done.stderr

    @property
    def address(self) -> Address:
        """The published address."""
        found = address.read(self.dir)
        assert found is not None, "no server is published"
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

    def kill_server(self) -> Address:
        """SIGKILL the server and return its address."""
        before = self.address
        os.kill(before.pid, signal.SIGKILL)
        return before

    def wait_for_another(self, before: Address, *, seconds: float = 30.0) -> Address:
        """Wait until another server than this one is published."""
        wait_until(
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
