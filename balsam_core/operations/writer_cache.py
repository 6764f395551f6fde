"""What a process that alone writes to a database may keep between transactions.

It knows ids of the small tables without asking each time, and uses one driver's cursor, without SQLAlchemy's checks for
lost connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sqlalchemy.engine.interfaces import DBAPICursor

MAX_ENTRIES = 10_000  # then it starts anew


class WriterCache:
    """Ids and other values of small tables by (table, name), for the only writer of a database.

    What a transaction reads or adds is kept only once it is committed.

    Attributes:
        cursor: A cursor on the connection that the calls run on.
        last_ids: The newest id given, by table, as the open transaction has it.
    """

    def __init__(self, cursor: DBAPICursor) -> None:
        self.cursor = cursor
        self.last_ids: dict[str, int] = {}
        self._committed: dict[Hashable, Any] = {}
        self._pending: dict[Hashable, Any] = {}

    def get(self, key: Hashable) -> Any:  # noqa: ANN401
        """Return what is known, None where nothing is."""
        return self._committed.get(key)

    def put(self, key: Hashable, value: Any) -> None:  # noqa: ANN401
        """Keep a row that the open transaction has read or added, for when it is committed."""
        self._pending[key] = value

    def clear(self) -> None:
        """Forget everything: a row was changed or removed."""
        self._committed.clear()
        self._pending.clear()

    def committed(self) -> None:
        """Keep what the transaction has read or added."""
        if self._pending:
            if len(self._committed) > MAX_ENTRIES:
                self._committed.clear()
            self._committed.update(self._pending)
            self._pending.clear()

    def rolled_back(self) -> None:
        """Drop what the transaction, or any call in it, has read or added."""
        self._pending.clear()
        self.last_ids.clear()
