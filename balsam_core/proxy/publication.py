"""The published address as a client follows it: one look at the file's status for each call."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from balsam_core import address
from balsam_core.identity import started_at, this_machine

if TYPE_CHECKING:
    from balsam_core.address import Address
    from balsam_core.dbdir import DBDir

__all__ = ["NotPublishedError", "Publication", "is_gone", "is_here", "is_loopback"]


class NotPublishedError(Exception):
    """No server is published any more; the call may have been sent to one."""


class Publication:
    """What ``dbwriter_address`` says now; the file is read again when it was replaced.

    Args:
        db: The DB directory.
    """

    def __init__(self, db: DBDir) -> None:
        self.db = db
        self._file = os.fspath(db.address_file)
        self._seen: tuple[int, int, int] | None = None
        self._address: Address | None = None

    def current(self) -> Address | None:
        """Return the published address, None while no server is published.

        Raises:
            AddressError: The file is missing or damaged.
            SchemaMismatch: A newer Balsam wrote it.
        """
        try:
            status = os.stat(self._file, follow_symlinks=False)  # noqa: PTH116  (2 us, at each call)
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            seen = None
        if seen is None or seen != self._seen:
            # The status from before reading: a file that is replaced in between is read once more.
            self._address = address.read(self.db)
            self._seen = seen
        return self._address


def is_here(published: Address) -> bool:
    """Say whether the server runs on this machine."""
    here = this_machine()
    return (published.node, published.boot_id) == (here.node, here.boot_id)


def is_gone(published: Address) -> bool:
    """Say whether the server's process is proven dead; that of another machine, or of a container, never is."""
    if not is_here(published):
        return False
    return started_at(published.pid) != published.start_time


def is_loopback(host: str) -> bool:
    """Say whether an address means the machine that uses it."""
    return host in {"localhost", "::1"} or host.startswith("127.")
