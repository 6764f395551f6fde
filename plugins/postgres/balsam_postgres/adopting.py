"""Using a database of a server that somebody else runs: whether it is fit, and how safe writes are there."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import conninfo_to_dict

from balsam_core.plugin import Unavailable, is_loopback, option_choice, option_value, read_password, store_password
from balsam_postgres.configuration import DURABILITY_RISKS
from balsam_postgres.connecting import Connection, connect_adopted
from balsam_postgres.errors import translate
from balsam_postgres.programs import OLDEST
from balsam_postgres.url import check_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from balsam_core.plugin import DBDir

logger = logging.getLogger(__name__)

_NAMES = [*DURABILITY_RISKS, "synchronous_standby_names"]
_WEAK_COMMITS = {
    "local": "no write waits for a standby, so a failover may undo writes that were acknowledged",
    "remote_write": (
        "a standby may not have forced a write to its disk, so when both machines crash, writes that were acknowledged "
        "may be undone"
    ),
}
"""What each value of ``synchronous_commit`` risks where there is a synchronous standby."""


def adopt(db: DBDir, options: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Check the database that a URL names, and return the settings to store. Risks are logged as warnings.

    To the given settings, which a DB with a server of its own has, too, those of the URL are added.

    Raises:
        InvalidInput: The URL or an option is wrong.
        Unavailable: The database can't be reached, or can't be used.
    """
    url = option_value(db, options, "url")
    keep = option_choice(db, options, "store_password", ("yes", "no"))
    check_url(url)
    settings = {**settings, "store_password": keep, "url": url}
    adopted = replace(db, settings=settings)
    password = options.get("password")
    if password is None:
        password = read_password(adopted)
    try:
        connection = connect_adopted(adopted, password=password)
    except psycopg.Error as err:
        if known := translate(err):
            raise known from err
        raise Unavailable(f"the PostgreSQL server can't be reached: {' '.join(str(err).split())}") from err
    with contextlib.closing(connection):
        connection.autocommit = True
        try:
            _check_server(connection)
            for warning in _risks(connection, settings):
                logger.warning("%s", warning)
        except psycopg.Error as err:
            raise Unavailable(f"the PostgreSQL server can't be used: {' '.join(str(err).split())}") from err
    store_password(db, password, keep=keep == "yes")
    return settings


def warnings(db: DBDir) -> list[str]:
    """Return what makes writes less safe than promised, as the server is now.

    Raises:
        Unavailable: The database can't be reached.
    """
    try:
        with contextlib.closing(connect_adopted(db)) as connection:
            return list(_risks(connection, db.settings))
    except psycopg.Error as err:
        raise translate(err) or Unavailable(
            f"the PostgreSQL server can't be reached: {' '.join(str(err).split())}"
        ) from err


def _check_server(connection: Connection) -> None:
    """Raise an error where the server lacks what is needed."""
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


def _risks(connection: Connection, settings: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each thing that makes writes less safe than promised."""
    info = connection.info
    found = dict(connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [_NAMES]).fetchall())
    is_durable = settings["durability"] == "full"
    for name, risk in DURABILITY_RISKS.items():
        if found.get(name) == "off" and (is_durable or name != "synchronous_commit"):
            yield f"the server runs with {name}=off: {risk}"
    # Everybody may count these rows, though not see what is in them.
    row = connection.execute("SELECT count(*) FROM pg_stat_replication").fetchone()
    several = len(str(conninfo_to_dict(settings["url"]).get("host", "")).split(",")) > 1
    is_replicated = several or row not in {None, (0,)} or bool(found.get("synchronous_standby_names"))
    if is_durable and is_replicated:
        commit = found.get("synchronous_commit", "")
        if not found.get("synchronous_standby_names"):
            yield (
                "the server is replicated, but synchronous_standby_names is empty: a failover may undo writes that "
                "were acknowledged, and give their job ids out again"
            )
        elif commit in _WEAK_COMMITS:
            yield f"the server runs with synchronous_commit={commit}: {_WEAK_COMMITS[commit]}"
    if connection.setting_statement:
        yield (
            "a connection pooler in between ignores what Balsam sets, so each transaction sets it, which takes time: "
            "name the server itself"
        )
    is_local = info.host.startswith("/") or is_loopback(info.host)
    if not is_local and not connection.pgconn.ssl_in_use:
        yield f"the connection to {info.host} is not encrypted: add ?sslmode=verify-full to the URL"
