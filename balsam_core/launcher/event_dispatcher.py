"""Passes job events to the backend's hook ``balsam_job_event`` without ever waiting for it.

A slow, hanging or raising plugin must not slow or end a launcher: up to a limit its events are queued, beyond that
they are dropped.
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
from balsam_core.launcher.options import LAST_EVENTS_TIMEOUT
from balsam_core.model.calls import Event, GetInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from balsam_core.client.database import Database
    from balsam_core.model.calls import Update

logger = logging.getLogger(__name__)

MOST_QUEUED = 20_000  # events
MOST_AT_ONCE = 2000  # events in one call of the hook


class EventDispatcher:
    """Passes events to a function on a daemon thread, at most 2,000 at once and in their order.

    Their times are those of the database, whose time is ``now`` when this is made.
    """

    def __init__(self, handle: Callable[[Sequence[Event]], None], now: datetime) -> None:
        self._handle = handle
        self._now = now
        self._now_at = monotonic()
        self._queue: list[Event] = []
        self._dropped = 0
        self._logged_faults: set[str] = set()
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._dispatch_until_closed, name="balsam_job_event", daemon=True)
        self._thread.start()

    def add(self, updates: Sequence[Update]) -> None:
        """Queue the events of updates that the database has recorded; returns at once."""
        at = self._now + timedelta(seconds=monotonic() - self._now_at)
        events = [
            Event(job_id=one.job, at=at, transitions=one.transitions, message=one.message, attempt=one.attempt)
            for one in updates
            if one.transitions
        ]
        with self._changed:
            accepted = events[: MOST_QUEUED - len(self._queue)]
            self._queue += accepted
            self._changed.notify()
        if len(accepted) < len(events):
            if not self._dropped:
                logger.warning("balsam_job_event is too slow: events are dropped")
            self._dropped += len(events) - len(accepted)

    def close(self) -> None:
        """Give the plugin a moment for the queued events, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(LAST_EVENTS_TIMEOUT)
        if self._thread.is_alive():
            logger.warning("balsam_job_event has not ended in time: %d events are lost", len(self._queue))
        if self._dropped:
            logger.warning("balsam_job_event was too slow for %d events, which were dropped", self._dropped)

    def _dispatch_until_closed(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                events = self._queue[:MOST_AT_ONCE]
                del self._queue[:MOST_AT_ONCE]
            if not events:
                return
            try:
                self._handle(events)
            except BaseException as err:  # SystemExit as well: this is the thread's outermost frame
                kind = type(err.__cause__ or err).__name__
                if kind not in self._logged_faults:
                    self._logged_faults.add(kind)
                    logger.warning("an event was lost, others of this kind are not logged: %s", err, exc_info=True)


@contextmanager
def open_dispatcher(db: Database) -> Iterator[EventDispatcher | None]:
    """Give a dispatcher to the database's plugin, None where the plugin has no such hook; close it at the end.

    Raises:
        BalsamError: The database can't be asked for the time.
    """
    try:
        backend = registry.load(db.directory.db_type)
    except BackendError:  # the database was opened with a transport that belongs to no plugin
        backend = None
    if backend is None or not backend.has("balsam_job_event"):
        yield None
        return
    dispatcher = EventDispatcher(backend.job_event, db.run(GetInfo()).now)
    try:
        yield dispatcher
    finally:
        dispatcher.close()
