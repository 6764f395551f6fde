"""What a process that alone writes to a database may do faster than one among many.

It knows the small tables without asking each time; rows that a call adds are remembered only once their transaction is
committed. And it uses one driver's cursor, without SQLAlchemy's care for connections that may be lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sqlalchemy.engine.interfaces import DBAPICursor

__all__ = ["IdCache", "WriterCache"]

MOST = 10_000  # entries; then it starts anew


class IdCache:
    """Ids by (table, name), for the only writer of a database.

    Attributes:
        last_ids: The newest id given, by table, as the open transaction has it.
    """

    def __init__(self) -> None:
        self.last_ids: dict[str, int] = {}
        self._known: dict[Hashable, Any] = {}
        self._pending: dict[Hashable, Any] = {}

    def get(self, key: Hashable) -> Any:  # noqa: ANN401
        """Return what is known, None where nothing is."""
        return self._known.get(key)

    def learn(self, key: Hashable, value: Any) -> None:  # noqa: ANN401
        """Remember a row that the open transaction has read or added, for when it is committed."""
        self._pending[key] = value

    def clear(self) -> None:
        """Forget everything: a row was changed or removed."""
        self._known.clear()
        self._pending.clear()

    def committed(self) -> None:
        """Keep what the transaction taught."""
        if self._pending:
            if len(self._known) > MOST:
                self._known.clear()
            self._known.update(self._pending)
            self._pending.clear()

    def rolled_back(self) -> None:
        """Drop what the transaction, or any call in it, taught."""
        self._pending.clear()
        self.last_ids.clear()


@dataclass(frozen=True, kw_only=True)
class WriterCache:
    """The means of the only writer.

    Attributes:
        cursor: A cursor on the connection that the calls run on.
        names: What is known of the small tables.
    """

    cursor: DBAPICursor
    names: IdCache = field(default_factory=IdCache)
