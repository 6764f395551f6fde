"""Using a database of a server that somebody else runs: is it fit, and how safe are writes there?"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any

from balsam_core.plugin import Conflict, InvalidInput, Unavailable, is_loopback, shown
from balsam_mysql.connecting import connect_by_url
from balsam_mysql.init_files import check_durability, data_home
from balsam_mysql.keys import password_file, read_password, write_password
from balsam_mysql.url import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from balsam_core.plugin import DBDir

__all__ = ["adopt"]

logger = logging.getLogger(__name__)

# With SKIP LOCKED.
_OLDEST = {"mariadb": (10, 6), "mysql": (8, 0)}
_LEAST_PACKET = 32 * 1024 * 1024  # bytes; the largest call has 16 MiB, and quoting may double it
_VARIABLES = (
    "binlog_format", "innodb_doublewrite", "innodb_flush_log_at_trx_commit", "log_bin", "max_allowed_packet",
    "sync_binlog", "version",
)  # fmt: skip


def adopt(db: DBDir, options: Mapping[str, str]) -> dict[str, str]:
    """Check the database that a URL names, and return the settings to store. Risks are logged as warnings.

    Raises:
        InvalidInput: An option has a wrong value, or the server is too old.
        Conflict: The DB has a server of its own.
        Unavailable: The database can't be used.
    """
    if "url" not in db.settings and os.path.lexists(data_home(db)):
        raise Conflict(f"{shown(db.path)} has a server of its own: make a new DB for another server's database")
    for name in ("bindir", "memory", "server_user"):
        if name in options:
            raise InvalidInput(f"the option {name} is for a server that Balsam runs, not for one with a URL")
    url = options.get("url", db.settings.get("url", ""))
    target = Target.parse(url)
    durability = check_durability(options.get("durability", db.settings.get("durability", "full")))
    stored = options.get("store_password", db.settings.get("store_password", "yes"))
    if stored not in {"yes", "no"}:
        raise InvalidInput(f"the option store_password is {stored!a}; it must be yes or no")
    password = options.get("password")
    if password is None:
        password = read_password(db) if "url" in db.settings else ""
    found = _look(db, target, password)
    variant = _check(found, target)
    for warning in _risks(found, target, full=durability == "full"):
        logger.warning("%s", warning)
    if stored == "no":
        password_file(db).unlink(missing_ok=True)
    elif password:  # which has worked
        write_password(db, password)
    return {"durability": durability, "store_password": stored, "url": url, "variant": variant}


def _look(db: DBDir, target: Target, password: str) -> dict[str, str]:
    """Return the server's variables of interest, and what else :func:`_check` and :func:`_risks` want to know."""
    import MySQLdb

    try:
        connection = connect_by_url(db, target, password=password)
        try:
            cursor = connection.cursor()
            cursor.execute("SHOW GLOBAL VARIABLES")
            found = {str(name): str(value) for name, value in cursor if name in _VARIABLES}
            cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
            found["tls"] = str(cursor.fetchone()[1])
            cursor.execute("SHOW COLLATION WHERE Collation IN ('utf8mb4_nopad_bin', 'utf8mb4_0900_bin')")
            found["collation"] = str(cursor.fetchone())
            cursor.execute("SHOW ENGINES")
            found["engines"] = ",".join(str(row[0]) for row in cursor if row[1] in {"YES", "DEFAULT"})
        finally:
            connection.close()
    except MySQLdb.Error as err:
        why = " ".join(str(err.args[-1] if err.args else err).split())
        raise Unavailable(f"the database server at {_place(target)} can't be used: {why}") from err
    return found


def _check(found: Mapping[str, Any], target: Target) -> str:
    """Raise an error where the server can't do what is needed; return its variant."""
    version = str(found.get("version", ""))
    variant = "mariadb" if "mariadb" in version.lower() else "mysql"
    number = re.match(r"(?:5\.5\.5-)?(\d+)\.(\d+)", version)
    if not number or (int(number[1]), int(number[2])) < _OLDEST[variant]:
        raise InvalidInput(
            f"the server at {_place(target)} has version {version!a}: MariaDB 10.6, MySQL 8.0 or newer is needed"
        )
    if "InnoDB" not in found["engines"] or found["collation"] == "None":
        raise InvalidInput(f"the server at {_place(target)} lacks InnoDB or a collation that compares bytes")
    if found.get("log_bin") == "ON" and found.get("binlog_format") == "STATEMENT":
        raise InvalidInput(
            f"the server at {_place(target)} keeps its binary log by statements, which it can't do for the isolation "
            f"that is needed: let it set binlog_format to ROW or MIXED"
        )
    return variant


def _risks(found: Mapping[str, str], target: Target, *, full: bool) -> Iterator[str]:
    """Yield a line for each setting of the server that makes writes less safe than promised."""
    where = f"the server at {_place(target)}"
    flush, sync = found.get("innodb_flush_log_at_trx_commit"), found.get("sync_binlog")
    if full and flush != "1":
        yield (
            f"{where} has innodb_flush_log_at_trx_commit={flush}: acknowledged writes of the last second can be lost "
            f"when it crashes; 1 is safe"
        )
    if full and found.get("log_bin") == "ON" and sync != "1":
        yield f"{where} has sync_binlog={sync}: its binary log can lose acknowledged writes when it crashes; 1 is safe"
    if found.get("innodb_doublewrite", "").upper() in {"OFF", "0", "DETECT_ONLY"}:
        yield f"{where} has innodb_doublewrite off: a crash can damage its tables, unless its disk writes pages whole"
    if int(found.get("max_allowed_packet", _LEAST_PACKET)) < _LEAST_PACKET:
        yield (
            f"{where} has max_allowed_packet={found['max_allowed_packet']}: jobs with large documents can be refused; "
            f"{_LEAST_PACKET} is enough"
        )
    if not target.is_sure and not target.is_local and not is_loopback(target.host):
        how = "encrypted only as long as nobody interferes" if found["tls"] else "not encrypted"
        yield f"the connection to {where} is {how}: add ssl_ca=FILE to the URL"


def _place(target: Target) -> str:
    return target.options.get("unix_socket") or f"{target.host}:{target.port}"
