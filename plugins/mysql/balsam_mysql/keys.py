"""The password and the certificate in ``keys/`` of a DB directory.

Clients prove the server by the certificate on each connection, also on the loopback: there, whoever binds the port of a
server that has died could else ask for the password, or hand out jobs of his own.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from typing import TYPE_CHECKING

from balsam_core.plugin import DBDirError, Unavailable, make_certificate, private_file, shown, write_private

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import DBDir

__all__ = [
    "PASSWORD_VARIABLE",
    "certificate_file",
    "key_file",
    "make_keys",
    "password_file",
    "pin_file",
    "read_password",
    "write_password",
]

PASSWORD_VARIABLE = "BALSAM_DB_PASSWORD"  # noqa: S105  (a variable's name)

# What an own account may log in with. Others of MariaDB's client library would send the password itself.
_LOGIN = {"mariadb": "mysql_native_password", "mysql": "caching_sha2_password"}


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


def make_keys(db: DBDir, variant: str) -> None:
    """Make the certificate, its key and the file of options where they are missing or not as they should be.

    Args:
        db: The DB directory, whose owner this process must be: root writes nothing into other users' folders.
        variant: ``mariadb`` or ``mysql``.

    Raises:
        DBDirError: They are another user's to make, can't be written, or are open to others.
    """
    certificate, pin = certificate_file(db), pin_file(db)
    foreign = db.path.stat().st_uid != os.geteuid()
    if not foreign:
        make_certificate(certificate, key_file(db))
    try:
        der = ssl.PEM_cert_to_DER_cert(private_file(certificate).decode())
    except ValueError:
        raise DBDirError(f"{shown(certificate)} is damaged: restore it from a backup, or remove it") from None
    parts = [
        f"[balsam-{kind}]\nssl-fp={hashlib.new(kind, der).hexdigest()}\nrestricted-auth={_LOGIN[variant]}\n"
        for kind in ("sha1", "sha256")
    ]
    wanted = "".join(parts).encode()
    if os.path.lexists(pin) and private_file(pin) == wanted:
        return
    if foreign:
        raise DBDirError(f"{shown(pin)} is missing or damaged: let the owner of the DB run balsam init on it")
    write_private(pin, wanted)


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
