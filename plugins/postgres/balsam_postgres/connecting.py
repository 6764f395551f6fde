"""Opening a connection, to the DB's own server or to an adopted one.

Everything is said explicitly: libpq would fill in what is left out from variables like PGHOSTADDR and PGSSLMODE, and a
connection would go where the user meant another one to go.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import psycopg

from balsam_core.plugin import BackendError, Unavailable, is_loopback, seconds_left, shown
from balsam_postgres.bootstrap import DATABASE, ROLE, password_file, stored_password
from balsam_postgres.errors import hopeless
from balsam_postgres.server import PROTOCOL, certificate_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balsam_core.plugin import Address, DBDir

__all__ = ["adopted_parameters", "connect", "connect_adopted", "own_parameters", "remember_password"]

CONNECT_TIMEOUT = 10  # seconds
LOCK_TIMEOUT = "10s"  # then the transaction is repeated
IDLE_TIMEOUT = "60s"  # a client that stopped inside a transaction must not hold its locks for good
_ENV = "BALSAM_DB_PASSWORD"
_NETWORK = {  # a host that is gone is noticed within half a minute
    "connect_timeout": str(CONNECT_TIMEOUT),
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",  # ms
}
_SINCE = {"require_auth": 160000, "sslnegotiation": 170000, "sslcertmode": 160000}  # version of libpq

_given: dict[str, str] = {}  # passwords that this process was told and shall not store, by DB id


def connect(db: DBDir, address: Address, *, timeout: float | None = None) -> psycopg.Connection[Any]:
    """Open a connection to the DB's own server.

    Args:
        db: The DB directory.
        address: Where the server is.
        timeout: Seconds that it may take; libpq's least is 2.

    Raises:
        Unavailable: The server refuses for good.
        DBDirError: The password can't be read.
        psycopg.OperationalError: It can't be reached now.
    """
    if address.protocol != PROTOCOL:
        raise Unavailable(f"{shown(db.address_file)} names a server that speaks {address.protocol}, not {PROTOCOL}")
    parameters = own_parameters(db, address, psycopg.pq.version())
    parameters["connect_timeout"] = _patience(timeout)
    return _open(parameters, stored_password(db), f"the server of {shown(db.path)} at {address.place}")


def connect_adopted(db: DBDir) -> psycopg.Connection[Any]:
    """Open a connection to the server that somebody else runs.

    Raises:
        Unavailable: It refuses for good.
        DBDirError: The password can't be read.
        psycopg.OperationalError: It can't be reached now.
    """
    parameters = adopted_parameters(db.settings, psycopg.pq.version())
    if "connect_timeout" not in db.settings["url"]:
        parameters["connect_timeout"] = _patience(None)
    where = f"the PostgreSQL server at {parameters['host']}:{parameters['port']}"
    return _open(parameters, adopted_password(db), where)


def _patience(timeout: float | None) -> str:
    """Return the seconds that connecting may take: no more than the present call has left; libpq's least is 2."""
    return str(max(2, int(seconds_left(CONNECT_TIMEOUT if timeout is None else min(CONNECT_TIMEOUT, timeout)))))


def own_parameters(db: DBDir, address: Address, libpq: int) -> dict[str, str]:
    """Return what libpq must know of the DB's own server, without the password.

    Args:
        db: The DB directory.
        address: Where the server is.
        libpq: Its version, e.g. 160004.

    Raises:
        BackendError: That version would tell the password to whoever listens there.
    """
    # From 16 on libpq insists on SCRAM, by which the server proves itself, too: on the loopback that is enough, and it
    # is a third faster.
    enough = is_loopback(address.host) and libpq >= _SINCE["require_auth"]
    encrypted = address.details.get("tls") == "on" and not enough
    if not encrypted and libpq < _SINCE["require_auth"]:
        raise BackendError(
            f"the server of {shown(db.path)} doesn't encrypt, and PostgreSQL's library {libpq // 10000} would "
            f"tell the password to whoever listens in its place; 16 and newer don't: pip install 'psycopg[binary]', "
            f"or, for a backup, install newer programs of PostgreSQL"
        )
    return _known(
        {
            **_common(db.settings),
            "host": address.host,
            "hostaddr": "",
            "port": str(address.port),
            "user": ROLE,
            "dbname": DATABASE,
            # The only root that is trusted is this one certificate, so the name in it says nothing more.
            "sslmode": "verify-ca" if encrypted else "disable",
            "sslrootcert": str(certificate_file(db)) if encrypted else "",
            "sslcrl": os.devnull,  # else libpq looks for one in the user's home
            "sslcertmode": "disable",
            "sslnegotiation": "postgres",
            "gssencmode": "disable",
            # Whoever listens there in the server's place must not be told the password.
            "require_auth": "scram-sha-256",
        },
        libpq,
    )


def adopted_parameters(settings: Mapping[str, str], libpq: int) -> dict[str, str]:
    """Return what libpq must know of an adopted server, without the password.

    Raises:
        BackendError: That version of libpq doesn't know what the URL asks for.
    """
    common = _common(settings)
    given = psycopg.conninfo.conninfo_to_dict(settings["url"])
    for name in given:
        if libpq < (since := _SINCE.get(name, 0)):  # it would be less careful than the user wants
            raise BackendError(
                f"the URL's {name} needs PostgreSQL's library {since // 10000} or newer, this is {libpq // 10000}: pip "
                f"install 'psycopg[binary]', or, for a backup, install newer programs of PostgreSQL"
            )
    options = " ".join(filter(None, [str(given.pop("options", "")), common.pop("options")]))
    defaults = {"hostaddr": "", "port": "5432", "sslmode": "prefer", "gssencmode": "disable"}
    return _known(
        {**common, **defaults, **{name: str(value) for name, value in given.items()}, "options": options}, libpq
    )


def adopted_password(db: DBDir) -> str | None:
    """Return the password for the adopted server; None where there is none, or libpq finds it by itself."""
    if db.id in _given:
        return _given[db.id]
    return stored_password(db) if os.path.lexists(password_file(db)) else os.environ.get(_ENV)


def remember_password(db: DBDir, password: str) -> None:
    """Keep a password for this process only."""
    _given[db.id] = password


def _common(settings: Mapping[str, str]) -> dict[str, str]:
    relaxed = settings.get("durability") == "relaxed"
    options = {
        "lock_timeout": LOCK_TIMEOUT,
        "idle_in_transaction_session_timeout": IDLE_TIMEOUT,
        **({"synchronous_commit": "off"} if relaxed else {}),
    }
    return {
        **_NETWORK,
        "application_name": "balsam",
        "client_encoding": "UTF8",
        "target_session_attrs": "any",
        "options": " ".join(f"-c {name}={value}" for name, value in options.items()),
    }


def _known(parameters: dict[str, str], libpq: int) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if libpq >= _SINCE.get(name, 0)}


def _open(parameters: dict[str, str], password: str | None, where: str) -> psycopg.Connection[Any]:
    secret = {} if password is None else {"password": password}
    try:
        connection = psycopg.connect(**parameters, **secret)  # type: ignore[arg-type]
    except psycopg.OperationalError as err:
        if reason := hopeless(err):
            raise Unavailable(f"{where} can't be used: {reason}") from err
        raise
    except psycopg.ProgrammingError as err:  # a parameter that this libpq doesn't know
        raise BackendError(f"{where} can't be connected to: {' '.join(str(err).split())}") from err
    if not (connection.info.parameter_status("DateStyle") or "").startswith("ISO"):  # by PGDATESTYLE or the server
        connection.execute("SET datestyle TO ISO")
        connection.commit()
    return connection
