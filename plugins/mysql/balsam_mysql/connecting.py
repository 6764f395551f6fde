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

ALL_ROWS = 2**64 - 1  # of sql_select_limit
NO_BOUND = 2**32 - 1  # generations of jobs; else 1000, after which MySQL fails and MariaDB gives what it has
# All that is relied on: a server that somebody else runs may have other values, also by its init_connect.
_VARIABLES = {
    "sql_mode": f"'{SQL_MODE}'",
    "innodb_lock_wait_timeout": LOCK_TIMEOUT,
    "lock_wait_timeout": TABLE_LOCK_TIMEOUT,
    "time_zone": "'+00:00'",
    "completion_type": "'NO_CHAIN'",
    "default_storage_engine": "InnoDB",  # for Alembic's own table
    "foreign_key_checks": 1,
    "sql_big_selects": 1,  # whatever max_join_size is
    "sql_safe_updates": 0,
    "sql_select_limit": ALL_ROWS,
    "unique_checks": 1,
}
_MARIADB_VARIABLES = {
    # A client that is stopped, or whose host has lost its power, must not keep its locks for hours.
    "idle_write_transaction_timeout": IDLE_WRITE_TIMEOUT,
    "max_statement_time": 0,
    "max_recursive_iterations": NO_BOUND,
}
_MYSQL_VARIABLES = {"max_execution_time": 0, "cte_max_recursion_depth": NO_BOUND}


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
    """Return a connection to a server that somebody else runs: the first one of the URL that takes writes.

    Reads go there, too: a replica may lag behind. Errors as from :func:`connect`. Without a password the stored one is
    used.
    """
    return open_adopted(db, target, password=password, read_timeout=read_timeout)[0]


def open_adopted(
    db: DBDir, target: Target, *, password: str | None = None, read_timeout: int = READ_TIMEOUT
) -> tuple[Any, Target]:
    """Return the same, and which server it is."""
    import MySQLdb

    from balsam_mysql.errors import most_telling

    if password is None:
        password = read_password(db)
    if password is None and db.settings.get("store_password") == "no":
        raise Unavailable(
            f"the password of {shown(db.path)} is not stored: put it into the variable BALSAM_DB_PASSWORD"
        )
    faults: list[tuple[str, MySQLdb.Error]] = []
    refusals: list[Unavailable] = []
    for one in target.each():
        try:
            connection = _open_connection(
                {**one.parameters(), "password": password or ""}, CONNECT_TIMEOUT, read_timeout, adopted=True
            )
        except MySQLdb.Error as err:
            faults.append((one.endpoint, err))
        except Unavailable as err:  # a node that is being set up may not know the account
            refusals.append(err)
        else:
            return connection, one
    raise refusals[0] if refusals else most_telling(faults)


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
    parameters: dict[str, Any],
    timeout: int,
    read_timeout: int,
    own_password: Path | None = None,
    *,
    adopted: bool = False,
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
        is_mariadb = "MariaDB" in connection.get_server_info()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE")
        variables = _VARIABLES | (_MARIADB_VARIABLES if is_mariadb else _MYSQL_VARIABLES)
        cursor.execute("SET SESSION " + ", ".join(f"{name}={value}" for name, value in variables.items()))
        if parameters.get("ssl_mode", "DISABLED") not in {"DISABLED", "PREFERRED"}:
            cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
            if not cursor.fetchone()[1]:
                raise Unavailable(f"the database server at {parameters.get('host')} can't encrypt, which it must")
        if adopted:
            _check_role(cursor, is_mariadb=is_mariadb)
            connection.commit()  # what init_connect has begun
        cursor.close()
    except BaseException:
        connection.close()
        raise
    return connection


def _check_role(cursor: Any, *, is_mariadb: bool) -> None:  # noqa: ANN401
    """Refuse a replica and a node of a Galera cluster that isn't ready: they take no writes, and reads may be old.

    Raises:
        MySQLdb.OperationalError: It is one now.
    """
    import MySQLdb

    from balsam_mysql.errors import NO_VARIABLE, NOT_READY, READ_ONLY

    try:
        cursor.execute(f"SELECT @@global.read_only{', @@global.wsrep_on' if is_mariadb else ''}")
    except MySQLdb.OperationalError as err:
        if err.args[0] != NO_VARIABLE:  # MariaDB can be built without Galera
            raise
        cursor.execute("SELECT @@global.read_only")
    read_only, *galera = map(str, cursor.fetchone())
    if read_only not in {"0", "OFF"}:
        raise MySQLdb.OperationalError(READ_ONLY, f"it is read-only, as a replica is: read_only={read_only}")
    if galera in (["1"], ["ON"]):
        cursor.execute("SHOW STATUS LIKE 'wsrep_ready'")
        if cursor.fetchone() != ("wsrep_ready", "ON"):
            raise MySQLdb.OperationalError(NOT_READY, "it has no quorum, or is still joining: wsrep_ready=OFF")
        cursor.execute("SET SESSION wsrep_dirty_reads=OFF, wsrep_sync_wait=15")  # all kinds of statements
