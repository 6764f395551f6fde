"""Opening a connection, to the DB's own server or to an adopted one.

libpq's variables, e.g. PGHOSTADDR, PGSERVICE and PGGEQO, are meant for other connections: they don't count.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from balsam_core.plugin import BackendError, Unavailable, is_loopback, read_password, seconds_left, shown
from balsam_postgres.configuration import DATABASE, ROLE
from balsam_postgres.errors import permanent_error
from balsam_postgres.keys import certificate_file
from balsam_postgres.libpq import hidden_variables, overriding_variables, refusal_code
from balsam_postgres.server import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balsam_core.plugin import Address, DBDir

CONNECT_TIMEOUT = 10  # seconds
LOCK_TIMEOUT = "10s"  # then the transaction is repeated
IDLE_TIMEOUT = "1min"  # a client that stopped inside a transaction must not hold its locks for good
_NETWORK = {  # a host that is gone is noticed within half a minute
    "connect_timeout": str(CONNECT_TIMEOUT),
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",  # ms
}
# What a role or a database may have been given other values of, on a server that somebody else runs.
_RELIED_ON = {
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "default_transaction_read_only": "off",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
}
_WAIT_FOR_STANDBY = "SyncRepWaitForLSN"  # the server's function
_NETWORK_ERRORS = (
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EPIPE,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
)
_UNANSWERED = (*map(os.strerror, _NETWORK_ERRORS), "server closed the connection unexpectedly")
_SINCE = {"require_auth": 160000, "sslnegotiation": 170000, "sslcertmode": 160000}  # version of libpq


def connect(db: DBDir, address: Address, *, timeout: float | None = None) -> Connection:
    """Open a connection to the DB's own server, within ``timeout`` seconds; libpq's least is 2.

    Raises:
        Unavailable: It can't succeed by repeating.
        DBDirError: The password can't be read.
        psycopg.OperationalError: It may succeed a moment later.
    """
    if address.protocol != PROTOCOL:
        raise Unavailable(f"{shown(db.address_file)} names a server that speaks {address.protocol}, not {PROTOCOL}")
    parameters = own_parameters(db, address, psycopg.pq.version())
    parameters["connect_timeout"] = _connect_timeout(timeout)
    return _open_connection(parameters, read_password(db), f"the server of {shown(db.path)} at {address.endpoint}")


def connect_adopted(db: DBDir, *, password: str | None = None) -> Connection:
    """Open a connection to a server that somebody else runs; errors as from :func:`connect`.

    Without a password the stored one is used, if there is any.
    """
    parameters = adopted_parameters(db.settings, psycopg.pq.version())
    if "connect_timeout" not in db.settings["url"]:
        parameters["connect_timeout"] = _connect_timeout(None)
    where = f"the PostgreSQL server at {_places(parameters)}"
    connection = _open_connection(parameters, read_password(db) if password is None else password, where)
    try:
        _set_behind_pooler(connection, db.settings, where)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_behind_pooler(connection: Connection, settings: Mapping[str, str], where: str) -> None:
    """Let each transaction set what a connection pooler in between has ignored.

    A pooler may give each transaction another of the server's connections. So nothing may be set, or prepared, for
    longer than a transaction.
    """
    connection.autocommit = True
    row = connection.execute(
        "SELECT current_setting('lock_timeout') = %s AND current_setting('idle_in_transaction_session_timeout') = %s",
        [LOCK_TIMEOUT, IDLE_TIMEOUT],
    ).fetchone()
    connection.autocommit = False
    if row == (True,):
        return
    if psycopg.conninfo.conninfo_to_dict(settings["url"]).get("options"):
        raise Unavailable(f"{where} is a connection pooler that ignores the URL's options: name the server itself")
    asked = _asked_of(settings, adopted=True)
    connection.setting_statement = (
        sql.SQL("SELECT {}")
        .format(
            sql.SQL(", ").join(sql.SQL("set_config({}, {}, true)").format(name, value) for name, value in asked.items())
        )
        .as_string()
    )
    connection.prepare_threshold = None


def _places(parameters: Mapping[str, str]) -> str:
    """Return the hosts and ports for messages."""
    hosts, ports = parameters["host"].split(","), parameters["port"].split(",")
    pairs = zip(hosts, ports if len(ports) == len(hosts) else ports * len(hosts), strict=True)
    return " or ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port or 5432}" for host, port in pairs)


def _connect_timeout(timeout: float | None) -> str:
    """Return the seconds that connecting may take: at most what the present call has left, but libpq's least is 2."""
    return str(max(2, int(seconds_left(CONNECT_TIMEOUT if timeout is None else min(CONNECT_TIMEOUT, timeout)))))


def own_parameters(db: DBDir, address: Address, libpq: int) -> dict[str, str]:
    """Return libpq's parameters for the DB's own server, without the password.

    ``libpq`` is the version of the library, or of the programs, that will connect, e.g. 160004.

    Raises:
        BackendError: That version would send the password to any program that listens there.
    """
    # From 16 on libpq can require SCRAM, by which the server proves itself, too. On the loopback that is enough, and a
    # third faster than TLS.
    is_scram_enough = is_loopback(address.host) and libpq >= _SINCE["require_auth"]
    encrypted = address.details.get("tls") == "on" and not is_scram_enough
    if not encrypted and libpq < _SINCE["require_auth"]:
        raise BackendError(
            f"the server of {shown(db.path)} doesn't encrypt, and PostgreSQL's library {libpq // 10000} would "
            f"tell the password to whoever listens in its place; 16 and newer don't: pip install 'psycopg[binary]', "
            f"or, for a backup, install newer programs of PostgreSQL"
        )
    return _supported(
        {
            **_common_parameters(db.settings),
            "host": address.host,
            "hostaddr": "",
            "port": str(address.port),
            "user": ROLE,
            "dbname": DATABASE,
            # Only this one certificate is trusted, so the name in it need not be checked.
            "sslmode": "verify-ca" if encrypted else "disable",
            "sslrootcert": str(certificate_file(db)) if encrypted else "",
            "sslcrl": os.devnull,  # else libpq looks for one in the user's home
            "sslcertmode": "disable",
            "sslnegotiation": "postgres",
            "gssencmode": "disable",
            # A program that listens there in the server's place must not get the password.
            "require_auth": "scram-sha-256",
        },
        libpq,
    )


def adopted_parameters(settings: Mapping[str, str], libpq: int) -> dict[str, str]:
    """Return libpq's parameters for an adopted server, without the password.

    Raises:
        BackendError: That version of libpq lacks what the URL asks for.
    """
    common = _common_parameters(settings, adopted=True)
    given = psycopg.conninfo.conninfo_to_dict(settings["url"])
    for name in given:
        if libpq < (since := _SINCE.get(name, 0)):  # it would be less careful than the user wants
            raise BackendError(
                f"the URL's {name} needs PostgreSQL's library {since // 10000} or newer, this is {libpq // 10000}: pip "
                f"install 'psycopg[binary]', or, for a backup, install newer programs of PostgreSQL"
            )
    options = " ".join(filter(None, [str(given.pop("options", "")), common.pop("options")]))
    defaults = {
        "hostaddr": "",
        "port": "5432",
        "sslmode": "prefer",
        "gssencmode": "disable",
        "target_session_attrs": "read-write",  # a standby takes no writes, and may lag behind for reads
    }
    return _supported(
        {**common, **defaults, **{name: str(value) for name, value in given.items()}, "options": options}, libpq
    )


def _asked_of(settings: Mapping[str, str], *, adopted: bool) -> dict[str, str]:
    """Return the server's settings that are asked for at each connection."""
    return {
        **(_RELIED_ON if adopted else {}),
        "lock_timeout": LOCK_TIMEOUT,
        "idle_in_transaction_session_timeout": IDLE_TIMEOUT,
        "client_min_messages": "warning",  # see Connection
        **({"synchronous_commit": "off"} if settings.get("durability") == "relaxed" else {}),
    }


def _common_parameters(settings: Mapping[str, str], *, adopted: bool = False) -> dict[str, str]:
    options = _asked_of(settings, adopted=adopted)
    return {
        **_NETWORK,
        "application_name": "balsam",
        "client_encoding": "UTF8",
        "target_session_attrs": "any",
        "options": " ".join(f"-c {name}={value}" for name, value in options.items()),
    }


def _supported(parameters: dict[str, str], libpq: int) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if libpq >= _SINCE.get(name, 0)}


class Connection(psycopg.Connection[Any]):
    """A connection whose COMMIT fails where the standby may not have what was committed.

    PostgreSQL only warns when its wait for a synchronous standby is cancelled; the text is in the server's language.

    Attributes:
        setting_statement: What each transaction must begin with, behind a connection pooler; empty elsewhere.
    """

    setting_statement = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._waits_ended = waits_ended = list[str]()

        def note(notice: psycopg.errors.Diagnostic) -> None:
            if notice.source_function == _WAIT_FOR_STANDBY:
                waits_ended.append(notice.message_primary or "")

        self.add_notice_handler(note)

    def commit(self) -> None:
        """Commit; see :meth:`psycopg.Connection.commit`.

        Raises:
            psycopg.errors.TransactionResolutionUnknown: It is committed, but the standby may not have it.
        """
        self._waits_ended.clear()
        super().commit()
        if self._waits_ended:
            raise psycopg.errors.TransactionResolutionUnknown(self._waits_ended[0])


def _is_unanswered(err: psycopg.OperationalError, parameters: Mapping[str, str]) -> bool:
    """Say whether the one server didn't answer at all, so that it has refused nothing."""
    return "," not in parameters["host"] and any(text in str(err) for text in _UNANSWERED)


def _open_connection(parameters: dict[str, str], password: str | None, where: str) -> Connection:
    given = overriding_variables(parameters if password is None else {**parameters, "password": password})
    try:
        with hidden_variables():
            connection = Connection.connect(**given)  # type: ignore[arg-type]
    except psycopg.errors.ConnectionTimeout:
        raise
    except psycopg.OperationalError as err:
        permanent = permanent_error(err, where)
        if permanent is None and not _is_unanswered(err, parameters):
            permanent = permanent_error(err, where, refusal_code(given))
        if permanent is not None:
            raise permanent from err
        raise
    except psycopg.ProgrammingError as err:  # a parameter that this libpq lacks
        raise BackendError(f"{where} can't be connected to: {' '.join(str(err).split())}") from err
    return connection
