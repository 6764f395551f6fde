"""Upgrades of a database that are killed before one of their statements.

Run as a program it makes one upgrade for each number on its standard input, in a child of its own: forked from a
process that has imported everything, it costs no start of Python.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sqlalchemy import event

from balsam_core.backends import registry
from balsam_core.dbdir.directory import DBDir
from balsam_core.schema import migrate

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sqlalchemy import Engine

__all__ = ["KilledUpgrades", "count_writes"]

READS = ("SELECT", "SHOW", "DESCRIBE", "PRAGMA", "EXPLAIN")


def count_writes(engine: Engine, before: Callable[[int], None]) -> None:
    """Call ``before`` with 1, 2, ... before each statement that changes something, and before each COMMIT.

    A kill before a statement that only reads leaves what a kill before the next one leaves.
    """
    number = 0

    def count() -> None:
        nonlocal number
        number += 1
        before(number)

    @event.listens_for(engine, "before_cursor_execute")
    def statement(_conn: object, _cursor: object, text: str, *_others: object) -> None:
        if not text.lstrip().upper().startswith(READS):
            count()

    @event.listens_for(engine, "commit")
    def commit(_conn: object) -> None:
        count()


class KilledUpgrades:
    """Upgrades a database as ``balsam init`` does, in a process that is killed at a statement.

    Args:
        db: The DB directory; its ``balsam.toml`` needn't be there.
    """

    def __init__(self, db: DBDir) -> None:
        words = [sys.executable, __file__, str(db.path), db.db_type, db.id]
        settings = [f"{name}={value}" for name, value in db.settings.items()]
        self._program = subprocess.Popen(
            [*words, *settings], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def kill_before(self, number: int) -> bool:
        """Kill an upgrade before its n-th statement that changes something; False where it ended before that."""
        assert self._program.stdin
        assert self._program.stdout
        self._program.stdin.write(f"{number}\n")
        status = self._program.stdout.readline().strip()
        assert status in {"0", str(-signal.SIGKILL)}, f"the upgrade ended with {status!r}"
        return status != "0"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.communicate()


def _upgrade(db: DBDir, last: int) -> None:
    engine = registry.load(db.db_type).create_engine(db, "owner")
    count_writes(engine, lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == last else None)
    migrate.upgrade(engine, db_id=db.id)
    engine.dispose()


def _main(path: str, db_type: str, db_id: str, *settings: str) -> None:
    db = DBDir(path=Path(path), db_type=db_type, id=db_id, settings=dict(one.split("=", 1) for one in settings))
    registry.load(db_type).create_engine(db, "owner").dispose()  # imports the driver
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                try:
                    _upgrade(db, int(line))
                    status = 0
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    raise
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


if __name__ == "__main__":
    _main(*sys.argv[1:])
