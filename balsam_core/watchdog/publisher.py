"""The published address of a watchdog's server: writing it, and seeing to it that it stays."""

from __future__ import annotations

import logging
import math
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from balsam_core.dbdir import address
from balsam_core.errors import BalsamError
from balsam_core.system import network
from balsam_core.system.failpoints import failpoint
from balsam_core.system.files import reason

if TYPE_CHECKING:
    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.lease import HeldLease

logger = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds between two readings of the published address, which may have been lost or damaged


class Publisher:
    """Publishes the address of one server after the other, of one DB directory.

    Attributes:
        generation: The number of the last published address.
        look_at: When to call :meth:`keep` again, by the monotonic clock; infinite while there is nothing to keep.

    Args:
        db: The DB directory.
        held: The lease of this watchdog, which alone writes the address.
        host: What the server is told to listen on; an address for all hosts is published as one of this machine.
    """

    def __init__(self, db: DBDir, held: HeldLease, host: str) -> None:
        self.generation = address.last_generation(db)
        self.look_at = math.inf
        self._db = db
        self._held = held
        self._advertised = network.advertised(host)
        self._published: Address
        self._fault = ""  # what was wrong with the file at the last look

    def publish(self, found: Address) -> Address:
        """Publish the address of a server that is ready, under the next generation; return what is published.

        Raises:
            BalsamError: It can't be written.
            OSError: The same.
        """
        published = msgspec.structs.replace(
            found,
            host=self._advertised if network.is_wildcard(found.host) else found.host,
            directory=self._held.lease.directory,
            generation=self.generation + 1,
        )
        failpoint("before_publish")
        address.write(self._db, published)
        failpoint("after_publish")
        self.generation, self._published = published.generation, published
        self.look_at = monotonic() + LOOK_EVERY
        return published

    def forget(self) -> None:
        """Keep it no more: its server has ended."""
        self.look_at = math.inf

    def keep(self, now: float) -> None:
        """Look from time to time whether the address is still published, and publish it again where it isn't.

        It may name this server by another host or port: an operator's, of a tunnel or another network.
        """
        if now < self.look_at:
            return
        self.look_at = now + LOOK_EVERY
        fault = "it says something else"
        try:
            found = address.read(self._db)
            if found and msgspec.structs.replace(found, host=self._published.host, port=self._published.port) == (
                self._published
            ):
                self._fault = ""
                return
        except BalsamError as err:
            fault = str(err)
        try:
            if not self._held.is_ours():
                return  # the next heartbeat ends this watchdog
            address.write(self._db, self._published)
            fault = f"{fault}; it was published again"
        except OSError as err:
            fault = f"{fault}; it can't be published again: {reason(err)}"
        if fault != self._fault:
            logger.warning("generation=%d: the published address was lost: %s", self.generation, fault)
            self._fault = fault
