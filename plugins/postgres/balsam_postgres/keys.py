"""The server's certificate and its key in ``keys/`` of a DB directory; clients trust this one certificate only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from balsam_core.plugin import DBDirError, private_file, shown

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import DBDir


def certificate_file(db: DBDir) -> Path:
    """Return the file with the certificate."""
    return db.keys / "postgres.crt"


def key_file(db: DBDir) -> Path:
    """Return the file with the certificate's key."""
    return db.keys / "postgres.key"


def read_key(db: DBDir) -> bytes:
    """Return the key. Root, who gives it to another user's server, reads it only if it is that user's own file.

    Raises:
        DBDirError: It is missing, open to others, or another user's.
    """
    key = key_file(db)
    private_file(key)
    with open(os.open(key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123  (a descriptor)
        if os.geteuid() == 0 and os.fstat(file.fileno()).st_uid != db.path.stat().st_uid:
            raise DBDirError(f"{shown(key)} belongs to another user than its DB directory: give it to that user")
        return file.read()
