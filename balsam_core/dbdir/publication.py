"""The published address as a client follows it, and what is said where it doesn't fit.

A call reads the file's status, and the file if it was replaced.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from balsam_core.dbdir import address
from balsam_core.errors import AddressError, SchemaMismatch, ServerNotRunning, Unavailable
from balsam_core.system.files import pasted, shown
from balsam_core.system.processes import this_machine

if TYPE_CHECKING:
    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.lease import LeaseStatus

TROUBLE_AFTER = 3.0  # seconds of waiting, after which a waiting program says what the server died of
RESTART_TIMEOUT = 8.0  # seconds for the watchdog to start a dead server again and publish it
ABANDONED_TIMEOUT = 2.0  # seconds to wait for a damaged file where no watchdog lives that would write it again
DAMAGED_POLL = 0.1  # seconds between two readings of a damaged file

published_address = address.read

logger = logging.getLogger(__name__)


class Publication:
    """What the ``dbwriter_address`` of a DB directory says now."""

    def __init__(self, db: DBDir) -> None:
        self.db = db
        self._file = os.fspath(db.address_file)
        # The file's status from before it was read, and what was read last: one object, because threads share it.
        self._cached: tuple[tuple[int, int, int] | None, Address | None] = (None, None)
        self._told = ""  # what the server died of, as it was told last

    @property
    def name(self) -> str:
        """The DB directory, for messages."""
        return shown(self.db.path)

    def forget(self) -> None:
        """Read the file again at the next call: a network file system may show its old status for a minute."""
        self._cached = (None, self._cached[1])

    def is_replaced(self, generation: int) -> bool:
        """Say whether another server than this process was published after this generation."""
        self.forget()
        try:
            published = self.current()
        except AddressError:  # so no other server is known; the epoch is the guard
            return False
        if published is None or published.generation <= generation:
            return False
        return published.pid != os.getpid() or not address.is_here(published)

    def current(self) -> Address | None:
        """Return the published address, None while no server is published.

        A server that was published stays so while the file is missing or damaged: it may be asked on.

        Raises:
            AddressError: The file is missing or damaged, and no server is known.
            SchemaMismatch: A newer Balsam wrote it.
            BalsamError: The server was given up; see :func:`balsam_core.dbdir.address.failure`.
        """
        try:
            status = os.stat(self._file, follow_symlinks=False)  # noqa: PTH116  (2 us, at each call)
            key = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            key = None
        cached_key, published = self._cached
        if key is None or key != cached_key:
            try:
                published = address.read(self.db)
            except AddressError:
                if published is None:
                    raise
            else:
                self._cached = (key, published)
        return published

    def await_current(self, deadline: float) -> Address | None:
        """Return the published address; while the file is missing or damaged, wait until it is written again.

        Args:
            deadline: How long to wait, by the monotonic clock.

        Raises:
            AddressError: It was not, and the deadline has passed, or no watchdog lives that would do it.
            ServerNotRunning: The watchdog that would do it is dead.
            SchemaMismatch: A newer Balsam wrote the file.
        """
        began = None
        while True:
            try:
                return self.current()
            except AddressError as err:
                now = time.monotonic()
                began = now if began is None else began
                if now > deadline or now - began > ABANDONED_TIMEOUT:
                    status = self._observe_lease()
                    if status and status.is_left_behind:
                        raise server_not_running(self.db) from err
                    if now > deadline or (status and status.is_available):
                        raise
            time.sleep(DAMAGED_POLL)

    def _observe_lease(self) -> LeaseStatus | None:
        """Return what is known of the watchdog; None where that can't be told."""
        from balsam_core.dbdir.lease import LeaseObserver

        try:
            return LeaseObserver(self.db).observe()
        except (OSError, SchemaMismatch, AddressError):
            return None

    def trouble(self) -> str:
        """Return what the server died of lately, to be appended to a message; empty where its watchdog says nothing."""
        from balsam_core.dbdir.lease import restarted

        status = self._observe_lease()
        return "" if status is None or status.is_available else restarted(status.lease)

    def tell_trouble(self) -> None:
        """Log once what the server died of, for whoever waits for it."""
        trouble = self.trouble()
        if trouble and self._told != trouble.partition("last: ")[2]:
            self._told = trouble.partition("last: ")[2]
            logger.warning("waiting for the server of %s%s", self.name, trouble)

    def check_reachable(self, published: Address) -> None:
        """Raise Unavailable where a published server can't be reached from this machine."""
        if is_loopback(published.host) and not address.is_here(published):
            if published.node == this_machine().node:
                raise Unavailable(
                    f"the server of {self.name} ran before this machine was restarted, and is not there any more: "
                    f"start it with balsam dbserver --path={pasted(self.db.path)}"
                )
            raise Unavailable(
                f"the server of {self.name} listens only on its own host, {published.node}, and this is another one: "
                f"restart it there with balsam dbserver --stop, then balsam dbserver --host 0.0.0.0"
            )


def server_not_running(db: DBDir) -> ServerNotRunning:
    """Return the error for a DB that needs its server while none is published; it says how to start it."""
    return ServerNotRunning(
        f"the server of {shown(db.path)} is not running: start it with balsam dbserver --path={pasted(db.path)}"
    )


def refuse_while_served(db: DBDir) -> None:
    """Return only if no server is published; while one is, nobody else may write to the files.

    Raises:
        Unavailable: A server is published.
        AddressError: ``dbwriter_address`` is missing or damaged.
    """
    if published := address.read(db):
        raise Unavailable(
            f"{shown(db.path)} is served at {published.endpoint}: stop the server first with "
            f"balsam dbserver --stop --path={pasted(db.path)}"
        )


def is_loopback(host: str) -> bool:
    """Say whether an address means the machine that uses it."""
    return host in {"localhost", "::1"} or host.startswith("127.")
