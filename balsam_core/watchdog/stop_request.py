"""``dbserver.stop``: asks the holder of a lease to stop its server, from any host that sees the directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from balsam_core.system.files import atomic_write, read_regular
from balsam_core.system.processes import this_machine

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.lease import Lease

_MAX_BYTES = 4096


class _StopRequest(msgspec.Struct, frozen=True):
    token: str
    asked_by: str = ""


def _stop_file(db: DBDir) -> Path:
    return db.path / "dbserver.stop"


def ask_to_stop(db: DBDir, lease: Lease) -> None:
    """Ask the holder of this lease, wherever it runs, to stop the server and end.

    Raises:
        OSError: The request can't be written.
    """
    request = _StopRequest(lease.token, f"{this_machine().node} pid {os.getpid()}")
    atomic_write(_stop_file(db), msgspec.json.encode(request) + b"\n")


def stop_asked(db: DBDir, lease: Lease) -> str | None:
    """Return who asked the holder of this lease to stop; None when nobody did."""
    try:
        request = msgspec.json.decode(read_regular(_stop_file(db), limit=_MAX_BYTES, follow=False), type=_StopRequest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return request.asked_by if request.token == lease.token else None


def forget_stop(db: DBDir) -> None:
    """Remove the request to stop, if there is one.

    Raises:
        OSError: It can't be removed.
    """
    _stop_file(db).unlink(missing_ok=True)
