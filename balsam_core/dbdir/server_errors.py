"""The errors of a DB that needs its server, or that must not be written to beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.dbdir import address
from balsam_core.errors import ServerNotRunning, Unavailable
from balsam_core.system.files import shown

if TYPE_CHECKING:
    from balsam_core.dbdir.directory import DBDir


def server_not_running(db: DBDir) -> ServerNotRunning:
    """Return the error for a DB that needs its server while none is published; it says how to start it."""
    path = shown(db.path)
    return ServerNotRunning(f"the server of {path} is not running: start it with balsam dbserver --path={path}")


def refuse_while_served(db: DBDir) -> None:
    """Return only if no server is published; while one is, nobody else may write to the files.

    Raises:
        Unavailable: A server is published.
        AddressError: ``dbwriter_address`` is missing or damaged.
    """
    if published := address.read(db):
        path = shown(db.path)
        raise Unavailable(
            f"{path} is served at {published.endpoint}: stop the server first with balsam dbserver --stop --path={path}"
        )
