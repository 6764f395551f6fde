"""A transport's connections: the last one is kept at hand.

To SQLAlchemy's pool and back is a fifth of a program's processor time for a claim.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = ["Connections"]


class Connections:
    """An engine's connections; threads may share them.

    Args:
        engine: Where they come from.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: Connection | None = None
        self._waiting = 0  # threads that may wait for the pool, which has only so many
        self._closed = False
        self._lock = threading.Lock()

    def take(self) -> Connection:
        """Return a connection that is in no transaction."""
        with self._lock:
            kept, self._kept = self._kept, None
            if kept is not None:
                return kept
            self._waiting += 1
        try:
            return self._engine.connect()
        finally:
            with self._lock:
                self._waiting -= 1

    def give_back(self, conn: Connection) -> None:
        """Keep a connection whose transaction has ended, or give it to the pool."""
        with self._lock:
            if self._kept is None and not self._waiting and not self._closed:
                self._kept = conn
                return
        conn.close()

    def close(self) -> None:
        """Keep none from now on."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()
