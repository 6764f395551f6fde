"""Opening connections with the driver mysqlclient: to a DB's own server, or to one that somebody else runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from balsam_core.plugin import (
    DBDirError,
    Unavailable,
    password_file,
    private_file,
    read_password,
    seconds_left,
    shown,
)
from balsam_mysql.configuration import (
    ACCOUNT,
    DATABASE,
    IDLE_WRITE_TIMEOUT,
    LOCK_TIMEOUT,
    SQL_MODE,
    TABLE_LOCK_TIMEOUT,
)
from balsam_mysql.keys import certificate_file, pin_file
from balsam_mysql.url import tcp_host

if TYPE_CHECKING:
    from pathlib import Path

    from MySQLdb.connections import Connection

    from balsam_core.plugin import Address, DBDir
    from balsam_mysql.url import Target

CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 600
"""Seconds without a byte of an answer after which a connection counts as broken.

The last resort against a server that hangs, for what has no deadline; a transport cuts its connections when a call's
time is over. It must be more than any statement takes.
"""

MYSQL_LIBRARY = (5, 0)  # versions of MySQL's client library start here; those of MariaDB's are below
LONG_FINGERPRINTS = (3, 4)  # version of MariaDB's client library from which on it takes SHA-256

_VARIABLES = (
    f"SET SESSION sql_mode='{SQL_MODE}', innodb_lock_wait_timeout={LOCK_TIMEOUT}, "
    f"lock_wait_timeout={TABLE_LOCK_TIMEOUT}, time_zone='+00:00'"
)
# A client that is stopped, or whose host has lost its power, must not keep its locks for hours.
_MARIADB_VARIABLES = f", idle_write_transaction_timeout={IDLE_WRITE_TIMEOUT}"


def connect(db: DBDir, address: Address, *, timeout: int = CONNECT_TIMEOUT, read_timeout: int = READ_TIMEOUT) -> Any:  # noqa: ANN401
    """Return a connection to the DB's own server.

    Raises:
        MySQLdb.Error: It may succeed a moment later.
        Unavailable: It can't succeed by repeating.
        DBDirError: The password is missing, or open to others.
    """
    parameters = {
        "host": tcp_host(address.host),
        "port": address.port,
        "user": ACCOUNT,
        "password": read_password(db),
        "database": DATABASE,
        **_tls_parameters(db),
    }
    return _open_connection(parameters, timeout, read_timeout, own_password=password_file(db))


def connect_adopted(
    db: DBDir,
    target: Target,
    *,
    password: str | None = None,
    read_timeout: int = READ_TIMEOUT,
) -> Any:  # noqa: ANN401
    """Return a connection to a server that somebody else runs; errors as from :func:`connect`.

    Without a password the stored one is used.
    """
    if password is None:
        password = read_password(db)
    if password is None and db.settings.get("store_password") == "no":
        raise Unavailable(
            f"the password of {shown(db.path)} is not stored: put it into the variable BALSAM_DB_PASSWORD"
        )
    parameters = {**target.parameters(), "password": password or ""}
    return _open_connection(parameters, CONNECT_TIMEOUT, read_timeout)


def _tls_parameters(db: DBDir) -> dict[str, Any]:
    """Return the driver's parameters for TLS: only the one certificate in ``keys`` is accepted, under any name.

    MariaDB's client library compares the host's name when told to verify, and no certificate of ours holds one. It also
    goes on without TLS when a server, or somebody in between, says that there is none, although told to require it.
    A fingerprint solves both. It can only be given by an option file, and before 3.4 it is SHA-1; but then the
    authority is checked as well. What the published address says is ignored.

    Raises:
        DBDirError: A file is missing, damaged or open to others.
    """
    import MySQLdb

    ca: dict[str, Any] = {"ca": str(certificate_file(db))}
    library = tuple(int(part) for part in MySQLdb.get_client_info().split(".")[:2])
    if library >= MYSQL_LIBRARY:
        return {"ssl": ca, "ssl_mode": "VERIFY_CA"}
    pin = pin_file(db)
    if b"ssl-fp=" not in private_file(pin):  # the driver would connect without a check
        raise DBDirError(f"{shown(pin)} is damaged: run balsam init on the DB, which writes it anew")
    return {
        "ssl": ca,
        "ssl_mode": "REQUIRED",
        "read_default_file": str(pin),
        "read_default_group": "balsam-sha256" if library >= LONG_FINGERPRINTS else "balsam-sha1",
    }


def _open_connection(
    parameters: dict[str, Any], timeout: int, read_timeout: int, own_password: Path | None = None
) -> Connection:
    import MySQLdb
    from MySQLdb.constants import CLIENT

    from balsam_mysql.errors import permanent_error

    try:
        connection = MySQLdb.connect(
            **parameters,
            connect_timeout=max(1, math.ceil(seconds_left(timeout))),
            read_timeout=read_timeout,
            write_timeout=read_timeout,
            charset="utf8mb4",
            collation="utf8mb4_bin",
            # An UPDATE counts the rows that it matched, whether or not it changed them, as on other databases.
            client_flag=CLIENT.FOUND_ROWS,
            multi_statements=False,
            local_infile=0,
            autocommit=False,
        )
    except MySQLdb.Error as err:
        if permanent := permanent_error(err, parameters, own_password):
            raise permanent from err
        raise
    try:
        cursor = connection.cursor()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute(_VARIABLES + (_MARIADB_VARIABLES if "MariaDB" in connection.get_server_info() else ""))
        if parameters.get("ssl_mode", "DISABLED") not in {"DISABLED", "PREFERRED"}:
            cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
            if not cursor.fetchone()[1]:
                raise Unavailable(f"the database server at {parameters.get('host')} can't encrypt, which it must")
        cursor.close()
    except BaseException:
        connection.close()
        raise
    return connection
