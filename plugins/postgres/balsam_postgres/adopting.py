"""Adopting a database on a server that somebody else runs."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import psycopg

from balsam_core.plugin import InvalidInput, Unavailable, is_loopback, write_private
from balsam_postgres.bootstrap import password_file
from balsam_postgres.connecting import connect_adopted, remember_password
from balsam_postgres.errors import DURABLE
from balsam_postgres.programs import OLDEST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balsam_core.plugin import DBDir

__all__ = ["adopt", "check_url"]

logger = logging.getLogger(__name__)

_FORM = "postgresql://USER@HOST:PORT/DATABASE"
_NEEDED = ("user", "host", "dbname")
_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir", "passfile")
_ALLOWED = {
    *_NEEDED,
    *_FILES,
    *("hostaddr", "port", "options", "connect_timeout", "target_session_attrs", "load_balance_hosts"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    *("sslmode", "sslnegotiation", "sslcertmode", "sslsni", "channel_binding", "require_auth"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version"),
    *("gssencmode", "krbsrvname", "gsslib", "gssdelegation"),
}


def adopt(db: DBDir, settings: Mapping[str, str], password: str | None) -> None:
    """Check that a database can be used, and keep the password as the settings say.

    Args:
        db: The DB directory.
        settings: What will be stored; they have ``url``.
        password: A new password, None where there is none.

    Raises:
        InvalidInput: The URL is wrong.
        Unavailable: The database can't be reached, or can't be used.
    """
    check_url(settings["url"])
    future = replace(db, settings=MappingProxyType(dict(settings)))
    if password is not None:
        remember_password(db, password)
    try:
        connection = connect_adopted(future)
    except psycopg.Error as err:
        raise Unavailable(f"the PostgreSQL server can't be reached: {' '.join(str(err).split())}") from err
    with contextlib.closing(connection):
        connection.autocommit = True
        try:
            _check(connection, settings)
        except psycopg.Error as err:
            raise Unavailable(f"the PostgreSQL server can't be used: {' '.join(str(err).split())}") from err
    if settings["store_password"] == "no":  # noqa: S105  (no password)
        with contextlib.suppress(FileNotFoundError):
            password_file(db).unlink()
    elif password is not None:
        write_private(password_file(db), password.encode() + b"\n")


def check_url(url: str) -> None:
    """Refuse a URL that libpq or we don't understand, or that holds a secret.

    Raises:
        InvalidInput: It is wrong.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise InvalidInput(f"the URL of a PostgreSQL server has the form {_FORM}")
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as err:
        # Its text may quote the URL, in which a password was put by mistake.
        what = "invalid URI query parameter" if "query parameter" in str(err) else "it is not well formed"
        raise InvalidInput(f"the URL can't be understood ({what}); its form is {_FORM}?sslmode=verify-full") from None
    if {"password", "sslpassword"} & parts.keys():
        raise InvalidInput("a password must not stand in the URL: use --password-file, or BALSAM_DB_PASSWORD")
    for name in _NEEDED:
        if not parts.get(name):
            raise InvalidInput(f"the URL doesn't name the {'database' if name == 'dbname' else name}: {_FORM}")
    for name in sorted(parts.keys() - _ALLOWED):
        raise InvalidInput(f"the URL has the parameter {name}, which Balsam can't use: leave it out")
    for name in _FILES:
        path = str(parts.get(name, ""))
        if path not in {"", "system"} and not os.path.isabs(path):  # noqa: PTH117  (not a path yet)
            raise InvalidInput(f"the URL's {name} is {path!a}: write the path in full")


def _check(connection: psycopg.Connection[Any], settings: Mapping[str, str]) -> None:
    info = connection.info
    if info.server_version < OLDEST * 10000:
        raise Unavailable(f"the server is PostgreSQL {info.server_version // 10000}; {OLDEST} is the oldest that works")
    row = connection.execute(
        "SELECT current_setting('server_encoding'), pg_is_in_recovery(), current_setting('transaction_read_only'), "
        "current_schema(), coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
    ).fetchone()
    assert row is not None  # noqa: S101  (for mypy)
    encoding, standby, read_only, schema, may_create = row
    if encoding != "UTF8":
        raise Unavailable(f"the database has the encoding {encoding}: make one with ENCODING 'UTF8' TEMPLATE template0")
    if standby or read_only == "on":
        raise Unavailable("the server allows no writing: name the primary server, or a user that may write")
    if not may_create:
        raise Unavailable(
            f"the user {info.user} may not make tables in the database {info.dbname}"
            f"{f' (schema {schema})' if schema else ''}: make it the owner of the database, or grant it CREATE there"
        )
    for name, danger in DURABLE.items():
        value = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
        if value == ("off",) and not (name == "synchronous_commit" and settings["durability"] == "relaxed"):
            logger.warning("the server runs with %s=off: %s", name, danger)
    local = info.host.startswith("/") or is_loopback(info.host)
    if not local and not connection.pgconn.ssl_in_use:
        logger.warning("the connection to %s is not encrypted: add ?sslmode=verify-full to the URL", info.host)
