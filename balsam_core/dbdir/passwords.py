"""The password of the account by which Balsam uses a database server: in ``keys/``, or told to each program."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from balsam_core.errors import DBDirError, InvalidInput
from balsam_core.system.files import shown
from balsam_core.system.private_files import private_file, write_private

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir

PASSWORD_VARIABLE = "BALSAM_DB_PASSWORD"  # noqa: S105  (a variable's name)

_passwords_in_memory: dict[str, str] = {}  # passwords that this process was told and that are not kept, by DB id


def password_file(db: DBDir) -> Path:
    """Return the file with the password, e.g. ``keys/postgres_password``."""
    return db.keys / f"{db.db_type}_password"


def read_password(db: DBDir) -> str | None:
    """Return the password.

    For a server that Balsam runs, it is in the file. For one that somebody else runs (the setting ``url``), it is what
    this process was told last, else in the file, else in the variable ``BALSAM_DB_PASSWORD``; None if in none of them.

    Raises:
        DBDirError: The file is missing, damaged, or open to other users.
        InvalidInput: What the variable holds can be no password.
    """
    file = password_file(db)
    if "url" in db.settings:
        if db.id in _passwords_in_memory:
            return _passwords_in_memory[db.id]
        if not os.path.lexists(file):
            return password_in_environment()
    try:
        return private_file(file).decode().rstrip("\n")
    except UnicodeDecodeError:
        raise DBDirError(f"{shown(file)} is damaged: restore it from a backup") from None


def password_in_environment() -> str | None:
    """Return the password in the variable ``BALSAM_DB_PASSWORD``, None where there is none.

    Raises:
        InvalidInput: What it holds can be no password.
    """
    data = os.environb.get(PASSWORD_VARIABLE.encode())
    return None if data is None else decoded_password(data, PASSWORD_VARIABLE)


def decoded_password(data: bytes, source: str) -> str:
    """Return a password, which every driver and program must be able to take; the source is for the message.

    Raises:
        InvalidInput: It is not UTF-8, or holds line breaks or a zero byte.
    """
    try:
        password = data.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"{source} is not in UTF-8: convert it") from None
    if set(password) & {"\0", "\r", "\n"}:
        raise InvalidInput(f"{source} holds a line break or a zero byte, which no password can: correct it")
    return password


def store_password(db: DBDir, password: str | None, *, keep: bool = True) -> None:
    """Store the password in the file, 0600; one that is not to be kept, for this process only, without the file.

    Args:
        db: The DB directory.
        password: The password, None if there is none.
        keep: Whether it is to be kept.

    Raises:
        DBDirError: The file can't be written.
        InvalidInput: It can be no password.
    """
    if password is not None:
        decoded_password(password.encode(errors="surrogateescape"), "the password")
    file = password_file(db)
    _passwords_in_memory.pop(db.id, None)
    if not keep:
        file.unlink(missing_ok=True)
        if password is not None:
            _passwords_in_memory[db.id] = password
    elif password is not None:
        write_private(file, password.encode())
