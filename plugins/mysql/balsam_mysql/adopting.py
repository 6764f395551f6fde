"""Using a database of a server that somebody else runs: whether it is fit, and how safe writes are there."""

from __future__ import annotations

import contextlib
import logging
import re
from typing import TYPE_CHECKING, Any

from balsam_core.plugin import (
    InvalidInput,
    Unavailable,
    is_loopback,
    option_choice,
    option_value,
    read_password,
    store_password,
)
from balsam_mysql.connecting import connect_adopted
from balsam_mysql.errors import translate
from balsam_mysql.url import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from balsam_core.plugin import DBDir

logger = logging.getLogger(__name__)

_OLDEST = {"mariadb": (10, 6), "mysql": (8, 0)}  # with SKIP LOCKED
_LEAST_PACKET = 32 * 1024 * 1024  # bytes; the largest call has 16 MiB, and quoting may double it
_VARIABLES = (
    "binlog_format", "group_replication_group_name", "innodb_doublewrite", "innodb_flush_log_at_trx_commit", "log_bin",
    "max_allowed_packet", "sync_binlog", "version", "wsrep_on",
)  # fmt: skip
_SEMI_SYNCHRONOUS = ("Rpl_semi_sync_master_status", "Rpl_semi_sync_source_status")
_STATUS = ("Slaves_connected", *_SEMI_SYNCHRONOUS)  # the first one is MariaDB's


def adopt(db: DBDir, options: Mapping[str, str]) -> dict[str, str]:
    """Check the database that a URL names, and return the settings to store. Risks are logged as warnings.

    Raises:
        InvalidInput: An option has a wrong value, or the server is too old.
        Unavailable: The database can't be used.
    """
    for name in ("bindir", "memory", "server_user"):
        if name in options:
            raise InvalidInput(f"the option {name} is for a server that Balsam runs, not for one with a URL")
    url = option_value(db, options, "url")
    target = Target.parse(url)
    durability = option_choice(db, options, "durability", ("full", "relaxed"))
    keep = option_choice(db, options, "store_password", ("yes", "no"))
    password = options.get("password")
    if password is None:
        password = (read_password(db) if "url" in db.settings else None) or ""
    properties = _server_properties(db, target, password)
    variant = _check_server(properties, target)
    for warning in _risks(properties, target, is_durable=durability == "full"):
        logger.warning("%s", warning)
    store_password(db, password or None, keep=keep == "yes")
    return {"durability": durability, "store_password": keep, "url": url, "variant": variant}


def warnings(db: DBDir) -> list[str]:
    """Return what makes writes less safe than promised, as the server is now.

    Raises:
        Unavailable: The database can't be reached.
    """
    target = Target.parse(db.settings["url"])
    properties = _server_properties(db, target, None)
    return list(_risks(properties, target, is_durable=db.settings["durability"] == "full"))


def _server_properties(db: DBDir, target: Target, password: str | None) -> dict[str, str]:
    """Return the server's variables of interest, and what else decides whether it is fit."""
    import MySQLdb

    try:
        connection = connect_adopted(db, target, password=password)
        try:
            cursor = connection.cursor()
            cursor.execute("SHOW GLOBAL VARIABLES")
            found = {str(name): str(value) for name, value in cursor if name in _VARIABLES}
            cursor.execute(f"SHOW GLOBAL STATUS WHERE Variable_name IN ({', '.join(map(repr, _STATUS))})")
            found |= {str(name): str(value) for name, value in cursor}
            found["replicas"] = found.get("Slaves_connected") or str(_count_replicas(cursor))
            cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
            found["tls"] = str(cursor.fetchone()[1])
            cursor.execute("SHOW COLLATION WHERE Collation IN ('utf8mb4_nopad_bin', 'utf8mb4_0900_bin')")
            found["collation"] = str(cursor.fetchone())
            cursor.execute("SHOW ENGINES")
            found["engines"] = ",".join(str(row[0]) for row in cursor if row[1] in {"YES", "DEFAULT"})
        finally:
            connection.close()
    except MySQLdb.Error as err:
        if known := translate(err):
            raise known from err
        why = " ".join(str(err.args[-1] if err.args else err).split())
        raise Unavailable(f"the database server at {target.endpoint} can't be used: {why}") from err
    return found


def _count_replicas(cursor: Any) -> int:  # noqa: ANN401
    """Return how many replicas are known, 0 where the account may not see them."""
    import MySQLdb

    for statement in ("SHOW REPLICAS", "SHOW SLAVE HOSTS"):  # MySQL from 8.0.22 on; all others
        with contextlib.suppress(MySQLdb.Error):
            cursor.execute(statement)
            return len(cursor.fetchall())
    return 0


def _is_asynchronous(properties: Mapping[str, str], target: Target) -> bool:
    """Say whether there are replicas that a COMMIT is known not to wait for."""
    if "ON" in map(properties.get, _SEMI_SYNCHRONOUS) or properties.get("group_replication_group_name"):
        return False
    return len(target.hosts) > 1 or properties["replicas"] != "0"


def _check_server(properties: Mapping[str, str], target: Target) -> str:
    """Raise an error where the server lacks what is needed; return its variant."""
    version = properties.get("version", "")
    variant = "mariadb" if "mariadb" in version.lower() else "mysql"
    number = re.match(r"(?:5\.5\.5-)?(\d+)\.(\d+)", version)
    if not number or (int(number[1]), int(number[2])) < _OLDEST[variant]:
        raise InvalidInput(
            f"the server at {target.endpoint} has version {version!a}: MariaDB 10.6, MySQL 8.0 or newer is needed"
        )
    if "InnoDB" not in properties["engines"] or properties["collation"] == "None":
        raise InvalidInput(f"the server at {target.endpoint} lacks InnoDB or a collation that compares bytes")
    if properties.get("log_bin") == "ON" and properties.get("binlog_format") == "STATEMENT":
        raise InvalidInput(
            f"the server at {target.endpoint} has binlog_format=STATEMENT, which doesn't work with the isolation level "
            f"that is needed: ask who runs it to set binlog_format to ROW or MIXED"
        )
    return variant


def _risks(properties: Mapping[str, str], target: Target, *, is_durable: bool) -> Iterator[str]:
    """Yield a line for each setting of the server that makes writes less safe than promised."""
    where = f"the server at {target.endpoint}"
    flush, sync = properties.get("innodb_flush_log_at_trx_commit"), properties.get("sync_binlog")
    if is_durable and flush != "1":
        yield (
            f"{where} has innodb_flush_log_at_trx_commit={flush}: acknowledged writes of the last second can be lost "
            f"when it crashes; 1 is safe"
        )
    if is_durable and properties.get("log_bin") == "ON" and sync != "1":
        yield f"{where} has sync_binlog={sync}: its binary log can lose acknowledged writes when it crashes; 1 is safe"
    if properties.get("wsrep_on") == "ON":
        yield (
            f"{where} is a node of a Galera cluster: writes are safe only while all clients use the same node: let "
            f"a proxy with one active node lead them there"
        )
    elif is_durable and _is_asynchronous(properties, target):
        yield (
            f"{where} is replicated, but doesn't wait for its replicas: a failover may undo writes that were "
            f"acknowledged, and give their job ids out again"
        )
    if properties.get("innodb_doublewrite", "").upper() in {"OFF", "0", "DETECT_ONLY"}:
        yield f"{where} has innodb_doublewrite off: a crash can damage its tables, unless its disk writes pages whole"
    if int(properties.get("max_allowed_packet", _LEAST_PACKET)) < _LEAST_PACKET:
        yield (
            f"{where} has max_allowed_packet={properties['max_allowed_packet']}: jobs with large documents can be "
            f"refused; {_LEAST_PACKET} is enough"
        )
    if not target.is_verified and not target.is_local and not all(is_loopback(host) for host, _ in target.hosts):
        how = "encrypted only as long as nobody interferes" if properties["tls"] else "not encrypted"
        yield f"the connection to {where} is {how}: add ssl_ca=FILE to the URL"
