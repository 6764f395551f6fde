"""Files with secrets: private to their owner, written whole, refused when others could have read or changed them."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from balsam_core.errors import DBDirError
from balsam_core.system.files import atomic_write, read_with_status, reason, shown
from balsam_core.system.shortages import shortage

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES = 64 * 1024


def private_file(path: Path) -> bytes:
    """Return the content of a file that only its owner can read.

    Raises:
        DBDirError: It is missing, can't be read, is a symbolic link, belongs to another user, or is open to others.
        NoResources: It can't be read now; a repetition may succeed.
    """
    name = shown(path)
    try:
        data, status = read_with_status(path, limit=_MAX_BYTES, follow=False)
    except FileNotFoundError:
        raise DBDirError(f"{name} is missing") from None
    except OSError as err:
        if lack := shortage(err):
            raise type(lack)(f"{name} can't be read now: {lack.message}") from None
        raise DBDirError(f"{name} can't be read ({reason(err)}): only its owner may") from None
    if status.st_uid != os.geteuid() != 0:
        raise DBDirError(f"{name} belongs to another user, who would know it")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise DBDirError(f"{name} is open to other users: make it private with chmod 600")
    return data


def write_private(path: Path, data: bytes) -> None:
    """Write a file, 0600, whole or not at all; its folder is made, 0700, where it is missing.

    Raises:
        DBDirError: It can't be written.
    """
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if path.parent.is_symlink():
            raise DBDirError(f"{shown(path.parent)} is a symbolic link, so secrets would lie elsewhere: remove it")
        atomic_write(path, data)
    except OSError as err:
        raise DBDirError(f"{shown(path)} can't be written: {reason(err)}") from None
