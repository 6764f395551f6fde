"""The servers that this user started, on whatever host shares the home directory: how a bare ``--stop`` finds them.

One small file for each, made by the watchdog and removed at its end. It is a hint: what counts is the lease in the DB
directory that it names, and an entry without a living lease is removed by whoever meets it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from typing import TYPE_CHECKING

import msgspec

from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import BalsamError
from balsam_core.system.files import atomic_write, read_regular, reason
from balsam_core.watchdog.lease import LeaseObserver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["add", "remove", "running"]

logger = logging.getLogger(__name__)

_LARGEST = 64 * 1024  # bytes


class _Entry(msgspec.Struct, frozen=True):
    path: str  # as bytes in hexadecimal digits, since a path need not be text


def _folder() -> Path:
    from platformdirs import user_state_path

    return user_state_path("balsam", appauthor=False) / "servers"


def _file(db: DBDir) -> Path:
    return _folder() / f"{db.id}-{hashlib.sha256(os.fsencode(db.path)).hexdigest()[:16]}.json"


def add(db: DBDir) -> None:
    """Note that this user serves the DB; without a home directory nothing is noted."""
    try:
        file = _file(db)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(file, msgspec.json.encode(_Entry(os.fsencode(db.path).hex())))
    except (OSError, RuntimeError) as err:
        logger.warning("a bare --stop will not find this server: %s", _why(err))


def remove(db: DBDir) -> None:
    """Forget that this user serves the DB."""
    try:
        _file(db).unlink(missing_ok=True)
    except (OSError, RuntimeError) as err:
        logger.debug("the note of this server was not removed: %s", _why(err))


def running() -> list[DBDir]:
    """Return the DBs that this user serves, sorted by path; entries of servers that are gone are removed."""
    return sorted(_running(), key=lambda db: db.path)


def _running() -> Iterator[DBDir]:
    try:
        files = sorted(_folder().glob("*.json"))
    except (OSError, RuntimeError):
        return
    for file in files:
        try:
            entry = msgspec.json.decode(read_regular(file, limit=_LARGEST), type=_Entry)
            db = DBDir.open(os.fsdecode(bytes.fromhex(entry.path)))
            if not LeaseObserver(db).observe().is_available:
                yield db
                continue
        except OSError as err:  # a file system that is away for now
            logger.debug("%s: %s", file, err)
            continue
        except (BalsamError, ValueError, msgspec.MsgspecError) as err:
            logger.debug("%s: %s", file, err)
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def _why(err: Exception) -> str:
    return reason(err) if isinstance(err, OSError) else str(err)
