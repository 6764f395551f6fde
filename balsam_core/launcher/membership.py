"""A launcher among others: its registration, its lease, and what becomes of others that have died."""

from __future__ import annotations

import os
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.client.dead_launchers import PATIENCE, end_dead_launchers
from balsam_core.errors import BalsamError
from balsam_core.launcher import options as constants
from balsam_core.launcher.guardian import lease_clock
from balsam_core.model.calls import CloseLauncher, RegisterLauncher, RenewLease
from balsam_core.system.processes import started_at, this_machine

if TYPE_CHECKING:
    from balsam_core.client.database import Database
    from balsam_core.client.dead_launchers import Closed
    from balsam_core.launcher.retrying_client import RetryingClient


class Membership:
    """The registration of this launcher.

    Attributes:
        launcher_id: Its id.
        renew_at: When to renew the lease, by the monotonic clock.
        look_at: When to look for dead launchers.
        is_closed: Whether the database knows that it has ended.
    """

    def __init__(self, db: Database, client: RetryingClient, workflow: str) -> None:
        """Register, after dead launchers have given their jobs back.

        Raises:
            BalsamError: The database can't be reached, or refuses.
        """
        self.is_closed = False
        self._directory = db.directory
        self._client = client
        end_dead_launchers(db.directory, db.run, patience=PATIENCE)
        machine = this_machine()
        pid = os.getpid()
        self._asked_at = lease_clock()
        self.launcher_id = db.run(
            RegisterLauncher(
                host=machine.node,
                pid=pid,
                boot_id=machine.boot_id,
                process_start=started_at(pid) or 0.0,
                lease_seconds=constants.LEASE_SECONDS,
                workflow=workflow,
            )
        )
        self.renew_at = monotonic() + constants.RENEW_EVERY
        self.look_at = monotonic() + constants.LOOK_FOR_DEAD_EVERY

    def safe_until(self) -> float:
        """Return until when processes may run, by the clock of leases: shortly before the lease ends."""
        lease = constants.LEASE_SECONDS
        return self._asked_at + lease - min(constants.LEASE_MARGIN, lease / 3)

    def renew(self) -> list[int]:
        """Extend the lease; return the jobs that the user killed.

        Raises:
            BalsamError: The call failed, or this launcher was given up.
        """
        asked_at = lease_clock()
        answer = self._client.run(RenewLease(launcher=self.launcher_id, lease_seconds=constants.LEASE_SECONDS))
        self._asked_at = asked_at
        self.renew_at = monotonic() + constants.RENEW_EVERY
        return answer.killed

    def end_dead(self) -> list[Closed]:
        """Give back what dead launchers hold; return which they are.

        Raises:
            BalsamError: A call failed.
        """
        self.look_at = monotonic() + constants.LOOK_FOR_DEAD_EVERY
        return end_dead_launchers(self._directory, self._client.run)

    def close(self) -> None:
        """End it: the jobs that it still holds may be claimed by others.

        Raises:
            BalsamError: The call failed.
        """
        self._client.run(CloseLauncher(launcher=self.launcher_id))
        self.is_closed = True

    def try_to_close(self) -> bool:
        """End it where the database takes that; return whether it did."""
        if not self.is_closed:
            with suppress(BalsamError):
                self.close()
        return self.is_closed
