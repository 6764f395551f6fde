"""The server's certificate in ``keys/`` of a DB directory, and the file by which MariaDB's client library checks it.

Clients check the certificate on each connection, also on the loopback: there anybody could listen at the port of a
server that has died, ask for the password, or hand out jobs of his own.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from typing import TYPE_CHECKING

from balsam_core.plugin import DBDirError, make_certificate, private_file, shown, write_private

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import DBDir

# The only way to log in for our account. With some others MariaDB's client library would send the password itself.
_LOGIN_PLUGIN = {"mariadb": "mysql_native_password", "mysql": "caching_sha2_password"}


def certificate_file(db: DBDir) -> Path:
    """Return the file with the certificate of the DB's own server, the only one that clients trust."""
    return db.keys / "mysql_certificate.pem"


def key_file(db: DBDir) -> Path:
    """Return the file with the certificate's key."""
    return db.keys / "mysql_key.pem"


def pin_file(db: DBDir) -> Path:
    """Return the option file that tells MariaDB's client library the certificate's fingerprint."""
    return db.keys / "mysql_client.cnf"


def make_keys(db: DBDir, variant: str) -> None:
    """Make the certificate, its key and the option file, where they are missing or wrong.

    Files are made only by the owner of the DB directory: root writes nothing into another user's folder.

    Raises:
        DBDirError: Another user must make them, they can't be written, or they are open to others.
    """
    certificate, pin = certificate_file(db), pin_file(db)
    is_owner = db.path.stat().st_uid == os.geteuid()
    if is_owner:
        make_certificate(certificate, key_file(db))
    try:
        der = ssl.PEM_cert_to_DER_cert(private_file(certificate).decode())
    except ValueError:
        raise DBDirError(f"{shown(certificate)} is damaged: restore it from a backup, or remove it") from None
    sections = [
        f"[balsam-{kind}]\nssl-fp={hashlib.new(kind, der).hexdigest()}\nrestricted-auth={_LOGIN_PLUGIN[variant]}\n"
        for kind in ("sha1", "sha256")
    ]
    content = "".join(sections).encode()
    if os.path.lexists(pin) and private_file(pin) == content:
        return
    if not is_owner:
        raise DBDirError(f"{shown(pin)} is missing or damaged: let the owner of the DB run balsam init on it")
    write_private(pin, content)
