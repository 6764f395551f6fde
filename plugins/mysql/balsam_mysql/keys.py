"""The password and the certificate in ``keys/`` of a DB directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from balsam_core.plugin import DBDirError, Unavailable, private_file, shown, write_private

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import DBDir

__all__ = [
    "PASSWORD_VARIABLE",
    "certificate_file",
    "key_file",
    "password_file",
    "pin_file",
    "read_password",
    "write_password",
]

PASSWORD_VARIABLE = "BALSAM_DB_PASSWORD"  # noqa: S105  (a variable's name)


def password_file(db: DBDir) -> Path:
    """Return the file with the password of the account that Balsam uses."""
    return db.keys / "mysql_password"


def certificate_file(db: DBDir) -> Path:
    """Return the file with the certificate of the DB's own server, which clients trust and no other."""
    return db.keys / "mysql_certificate.pem"


def key_file(db: DBDir) -> Path:
    """Return the file with the certificate's key."""
    return db.keys / "mysql_key.pem"


def pin_file(db: DBDir) -> Path:
    """Return the file of options that tells MariaDB's client library the certificate's fingerprint."""
    return db.keys / "mysql_client.cnf"


def write_password(db: DBDir, password: str) -> None:
    """Store the password, 0600."""
    write_private(password_file(db), password.encode())


def read_password(db: DBDir) -> str:
    """Return the password.

    Raises:
        Unavailable: It is neither stored nor in the environment.
        DBDirError: The file is open to others, or damaged.
    """
    file = password_file(db)
    if db.settings.get("store_password") == "no":
        try:
            return os.environ[PASSWORD_VARIABLE]
        except KeyError:
            raise Unavailable(
                f"the password of {shown(db.path)} is not stored: put it into the variable {PASSWORD_VARIABLE}"
            ) from None
    if "url" in db.settings and not os.path.lexists(file):
        return ""  # none was given: the server may know its users by other means
    try:
        return private_file(file).decode()
    except UnicodeDecodeError:
        raise DBDirError(f"{shown(file)} is damaged: restore it from a backup") from None
