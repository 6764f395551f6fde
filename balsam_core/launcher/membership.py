"""A launcher among others: its registration, its lease, and what becomes of others that have died."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from time import localtime, monotonic, strftime, time
from typing import TYPE_CHECKING

from balsam_core.client.dead_launchers import LauncherWatch, record_runs
from balsam_core.dbdir.launcher_journal import Journal, remove_stale
from balsam_core.dbdir.launcher_logs import prune_logs
from balsam_core.errors import BalsamError
from balsam_core.launcher import options as constants
from balsam_core.launcher.guardian import lease_clock
from balsam_core.model.calls import CloseLauncher, GetLaunchers, RegisterLauncher, RenewLease
from balsam_core.system.processes import start_of, this_machine

if TYPE_CHECKING:
    from collections.abc import Iterable

    from balsam_core.client.database import Database
    from balsam_core.client.dead_launchers import Closed
    from balsam_core.launcher.retrying_client import RetryingClient
    from balsam_core.model.calls import LauncherInfo

logger = logging.getLogger(__name__)

MOST_NAMED = 3  # launchers in a message


def log_closed(launchers: Iterable[Closed]) -> None:
    """Say in the log which launchers were dead."""
    for one in launchers:
        logger.warning("%s; jobs given back: %d", one.why, one.launcher.jobs)


class Membership:
    """The registration of this launcher.

    Attributes:
        launcher_id: Its id.
        renew_at: When to renew the lease, by the monotonic clock.
        look_at: When to look for dead launchers.
        is_closed: Whether the database knows that it has ended.
        closed: The dead launchers that were met before it registered.
        workflow: Only jobs of this workflow are for it; empty for all.
    """

    def __init__(self, db: Database, client: RetryingClient, workflow: str) -> None:
        """Register, after dead launchers have given their jobs back.

        Raises:
            BalsamError: The database can't be reached, or refuses.
        """
        self.is_closed = False
        self.workflow = workflow
        self._client = client
        self._directory = db.directory
        self._watch = LauncherWatch(db.directory, client.run)
        self.closed = db.end_dead_launchers()
        self._machine = machine = this_machine()
        pid = os.getpid()
        self._asked_at = lease_clock()
        self.launcher_id = db.run(
            RegisterLauncher(
                host=machine.node,
                pid=pid,
                boot_id=machine.boot_and_namespace(),
                process_start=start_of(pid) or 0.0,
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
        closed = self._watch.look()
        log_closed(closed)
        return closed

    def holders(self) -> list[LauncherInfo]:
        """Return the other launchers that held jobs at the last look."""
        return [one for one in self._watch.living if one.jobs and one.id != self.launcher_id]

    def describe_holders(self) -> str:
        """Return who holds jobs, in words; empty for nobody."""
        named = []
        for one in self.holders()[:MOST_NAMED]:
            left = self._watch.seconds_left.get(one.id)
            text = f"{one.jobs} jobs" if one.jobs != 1 else "1 job"
            text += f" of launcher {one.id} (host {one.host}, pid {one.pid})"
            if left is not None and one in self._watch.doubtful():
                text += f", which is silent and counts as dead at {strftime('%H:%M:%S', localtime(time() + left))}"
            named.append(text)
        more = len(self.holders()) - len(named)
        return ", ".join(named) + (f" and jobs of {more} other launchers" if more > 0 else "")

    def close(self) -> None:
        """End it: the jobs that it still holds may be claimed by others.

        Raises:
            BalsamError: The call failed.
        """
        self._client.run(CloseLauncher(launcher=self.launcher_id))
        self.is_closed = True

    def try_to_close(self, how: str = "ended") -> bool:
        """End it where the database takes that, and record the runs that only its journal has; return whether it did.

        Args:
            how: How it ended, for the history of these jobs.
        """
        if not self.is_closed:
            with suppress(BalsamError):
                runs = Journal(self._directory, self.launcher_id).runs()
                record_runs(
                    self._client.run, self.launcher_id, self._machine.node, runs, f"launcher {self.launcher_id} {how}"
                )
                self.close()
        return self.is_closed

    def tidy(self) -> None:
        """Remove the journals and all but the newest logs of launchers that have ended.

        Raises:
            BalsamError: The database can't be asked.
            OSError: The folder can't be read.
        """
        known = {one.id for one in self._client.run(GetLaunchers())}
        remove_stale(self._directory, known)
        prune_logs(self._directory, known)

    def forget(self) -> None:
        """Remove the journal of a launcher whose end the database knows, and all of whose processes are gone."""
        if self.is_closed:
            Journal(self._directory, self.launcher_id).remove()
