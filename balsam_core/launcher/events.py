"""Telling the backend's plugin what happened to jobs, by its hook ``balsam_job_event``, without ever waiting for it.

A slow, hanging or raising plugin is no reason to slow or end a launcher: what it has not heard waits up to a limit,
and what comes on top is dropped.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from datetime import timedelta
from threading import Condition, Thread
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.backends import registry
from balsam_core.errors import BackendError
from balsam_core.launcher.options import HEAR_LAST
from balsam_core.model.calls import Event, GetInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from balsam_core.client.database import Database
    from balsam_core.model.calls import Update

__all__ = ["EventDispatcher", "telling"]

logger = logging.getLogger(__name__)

MOST_WAITING = 20_000  # events
MOST_AT_ONCE = 2000  # events in one call of the hook


class EventDispatcher:
    """Hands events to a function on a daemon thread of its own.

    Args:
        hear: The function; called with at most 2,000 events at once, in the order in which they were told.
        now: The database's time.
    """

    def __init__(self, hear: Callable[[Sequence[Event]], None], now: datetime) -> None:
        self._hear = hear
        self._now = now
        self._asked_at = monotonic()
        self._waiting: list[Event] = []
        self._dropped = 0
        self._faults: set[str] = set()
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="balsam_job_event", daemon=True)
        self._thread.start()

    def tell(self, updates: Sequence[Update]) -> None:
        """Tell what the database has recorded; returns at once."""
        at = self._now + timedelta(seconds=monotonic() - self._asked_at)
        events = [
            Event(job_id=one.job, at=at, transitions=one.transitions, message=one.message, attempt=one.attempt)
            for one in updates
            if one.transitions
        ]
        with self._changed:
            taken = events[: MOST_WAITING - len(self._waiting)]
            self._waiting += taken
            self._changed.notify()
        if len(taken) < len(events):
            if not self._dropped:
                logger.warning("balsam_job_event is too slow: events are dropped")
            self._dropped += len(events) - len(taken)

    def close(self) -> None:
        """Wait a moment for the plugin to hear the rest."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(HEAR_LAST)
        if self._thread.is_alive():
            logger.warning("balsam_job_event has not ended in time: %d events are lost", len(self._waiting))
        if self._dropped:
            logger.warning("balsam_job_event was too slow for %d events, which were dropped", self._dropped)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                events = self._waiting[:MOST_AT_ONCE]
                del self._waiting[:MOST_AT_ONCE]
            if not events:
                return
            try:
                self._hear(events)
            except BaseException as err:  # SystemExit as well: there is nobody above
                kind = type(err.__cause__ or err).__name__
                if kind not in self._faults:
                    self._faults.add(kind)
                    logger.warning("an event was lost, others of this kind are not logged: %s", err, exc_info=True)


@contextmanager
def telling(db: Database) -> Iterator[EventDispatcher | None]:
    """Give what tells the plugin of a database, None where it doesn't want to be told; close it in the end.

    Raises:
        BalsamError: The database can't be asked for the time.
    """
    try:
        backend = registry.load(db.directory.db_type)
    except BackendError:  # an open database whose transport is no plugin's
        backend = None
    if backend is None or not backend.has("balsam_job_event"):
        yield None
        return
    teller = EventDispatcher(backend.job_event, db.run(GetInfo()).now)
    try:
        yield teller
    finally:
        teller.close()
