"""The servers that this user started, on whatever host shares the home directory: how a bare ``--stop`` finds them.

A folder with one symbolic link to each DB directory, made by the watchdog and removed at its end. It is a hint: what
counts is the lease in the directory, and a link without a living lease is removed by whoever meets it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from typing import TYPE_CHECKING

from balsam_core.dbdir.directory import DBDir
from balsam_core.dbdir.lease import LeaseObserver
from balsam_core.errors import BalsamError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)


def _folder() -> Path:
    from platformdirs import user_state_path

    return user_state_path("balsam", appauthor=False) / "servers"


def _link_to(db: DBDir) -> Path:
    return _folder() / hashlib.sha256(os.fsencode(db.path)).hexdigest()


def add(db: DBDir) -> None:
    """Note that this user serves the DB; without a home directory nothing is noted."""
    try:
        link = _link_to(db)
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(db.path)
    except (OSError, RuntimeError) as err:
        logger.warning("a bare --stop will not find this server: %s", err)


def remove(db: DBDir) -> None:
    """Forget that this user serves the DB."""
    try:
        _link_to(db).unlink(missing_ok=True)
    except (OSError, RuntimeError) as err:
        logger.debug("the note of this server was not removed: %s", err)


def running() -> list[DBDir]:
    """Return the DBs that this user serves, sorted by path; links to others are removed."""
    try:
        links = [path for path in _folder().iterdir() if path.is_symlink()]
    except (OSError, RuntimeError):
        return []
    served = []
    for link in links:
        try:
            db = DBDir.open(link.readlink())
            is_served = not LeaseObserver(db).observe().is_available
        except OSError:  # a file system that is away for now
            continue
        except BalsamError:
            is_served = False
        if is_served:
            served.append(db)
        else:
            with contextlib.suppress(OSError):
                link.unlink()
    return sorted(served, key=lambda db: db.path)
