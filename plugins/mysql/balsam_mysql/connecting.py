"""Opening connections with the driver mysqlclient: to a DB's own server, or to one that somebody else runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from balsam_core.plugin import DBDirError, Unavailable, private_file, seconds_left, shown
from balsam_mysql import keys
from balsam_mysql.configuration import ACCOUNT, DATABASE, IDLE_WRITE, LOCK_WAIT, SQL_MODE, TABLE_LOCK_WAIT

if TYPE_CHECKING:
    from pathlib import Path

    from MySQLdb.connections import Connection

    from balsam_core.plugin import Address, DBDir
    from balsam_mysql.url import Target

__all__ = ["connect", "connect_by_url", "tls_of"]

CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 600
"""Seconds without a byte of an answer after which a connection counts as broken.

The last resort against a server that hangs, for what has no deadline: a transport cuts its connections when a call's
time is over. No statement may take longer, so this is more than any should.
"""

MYSQLS_OWN = (5, 0)  # MySQL's client library counts from here, MariaDB's is below
LONG_PINS = (3, 4)  # version of MariaDB's

_SESSION = (
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    (
        f"SET SESSION sql_mode='{SQL_MODE}', innodb_lock_wait_timeout={LOCK_WAIT}, "
        f"lock_wait_timeout={TABLE_LOCK_WAIT}, time_zone='+00:00'"
    ),
)
# A client that is stopped, or whose host has lost its power, must not keep its locks for hours.
_MARIADBS = f", idle_write_transaction_timeout={IDLE_WRITE}"


def connect(db: DBDir, address: Address, *, timeout: int = CONNECT_TIMEOUT, read_timeout: int = READ_TIMEOUT) -> Any:  # noqa: ANN401
    """Return a connection to the DB's own server.

    Raises:
        MySQLdb.Error: It may work a moment later.
        Unavailable: It will not.
        DBDirError: The password is missing, or open to others.
    """
    settings = {
        "host": address.host,
        "port": address.port,
        "user": ACCOUNT,
        "password": keys.read_password(db),
        "database": DATABASE,
        **tls_of(db),
    }
    return _open(settings, timeout, read_timeout, own=keys.password_file(db))


def connect_by_url(db: DBDir, target: Target, *, password: str | None = None, read_timeout: int = READ_TIMEOUT) -> Any:  # noqa: ANN401
    """Return a connection to a server that somebody else runs; errors as from :func:`connect`.

    Args:
        db: The DB directory.
        target: Where the database is.
        password: The password, None for what was stored.
        read_timeout: See :data:`READ_TIMEOUT`.
    """
    secret = keys.read_password(db) if password is None else password
    return _open({**target.parameters(), "password": secret}, CONNECT_TIMEOUT, read_timeout)


def tls_of(db: DBDir) -> dict[str, Any]:
    """Return the driver's parameters for TLS: only the one certificate in ``keys`` is accepted, under any name.

    MariaDB's client library compares the host's name when told to verify, and no certificate of ours holds one. It also
    goes on without TLS when a server, or somebody on the way, says that there is none, although told to require it.
    A fingerprint cures both; it can be given by a file of options only, and before 3.4 be SHA-1 only, but then the
    authority is checked besides. What the published address says plays no part.

    Raises:
        DBDirError: A file is missing, damaged or open to others.
    """
    import MySQLdb

    found: dict[str, Any] = {"ssl": {"ca": str(keys.certificate_file(db))}, "ssl_mode": "VERIFY_CA"}
    client = tuple(int(part) for part in MySQLdb.get_client_info().split(".")[:2])
    if client < MYSQLS_OWN:
        found["ssl_mode"] = "REQUIRED"
        pin = keys.pin_file(db)
        if b"ssl-fp=" not in private_file(pin):  # the driver would go on without
            raise DBDirError(f"{shown(pin)} is damaged: run balsam init on the DB, which writes it anew")
        found["read_default_file"] = str(pin)
        found["read_default_group"] = "balsam-sha256" if client >= LONG_PINS else "balsam-sha1"
    return found


def _open(settings: dict[str, Any], timeout: int, read_timeout: int, own: Path | None = None) -> Connection:
    import MySQLdb
    from MySQLdb.constants import CLIENT

    from balsam_mysql.errors import hopeless

    try:
        connection = MySQLdb.connect(
            **settings,
            connect_timeout=max(1, math.ceil(seconds_left(timeout))),
            read_timeout=read_timeout,
            write_timeout=read_timeout,
            charset="utf8mb4",
            collation="utf8mb4_bin",
            # Rows that an UPDATE matched count, whether or not it changed them, as everywhere else.
            client_flag=CLIENT.FOUND_ROWS,
            multi_statements=False,
            local_infile=0,
            autocommit=False,
        )
    except MySQLdb.Error as err:
        if fault := hopeless(err, settings, own):
            raise fault from err
        raise
    try:
        cursor = connection.cursor()
        isolation, variables = _SESSION
        cursor.execute(isolation)
        cursor.execute(variables + (_MARIADBS if "MariaDB" in connection.get_server_info() else ""))
        if settings.get("ssl_mode", "DISABLED") not in {"DISABLED", "PREFERRED"}:
            cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
            if not cursor.fetchone()[1]:
                raise Unavailable(f"the database server at {settings.get('host')} can't encrypt, which it must")
        cursor.close()
    except BaseException:
        connection.close()
        raise
    return connection
