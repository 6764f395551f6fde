"""The server's process: how to run it, and whether it works."""

from __future__ import annotations

import math
import signal
import time
from typing import TYPE_CHECKING

from balsam_core.plugin import (
    Address,
    DBDirError,
    ServerPlan,
    Unavailable,
    private_file,
)
from balsam_mysql.accounts import owner_of
from balsam_mysql.configuration import ENVIRONMENT, MEMORY, server_options
from balsam_mysql.init_files import data_home, server_programs
from balsam_mysql.keys import certificate_file, key_file, make_keys, password_file

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import DBDir
    from balsam_mysql.accounts import Owner

__all__ = ["server_plan"]

PROTOCOL = "mysql"
_READY_TIMEOUT = 120.0  # seconds; after a crash much may have to be recovered
_REFUSALS = 5.0  # seconds of a refused password, after which it is no other server that had the port a moment ago
_WILDCARDS = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def server_plan(db: DBDir, host: str, port: int) -> ServerPlan:
    """Return how to serve the data of a DB directory: always with TLS, which every build of MariaDB and MySQL can do.

    Args:
        db: The directory.
        host: Where to listen.
        port: Where to listen.

    Raises:
        BackendError: There is no program that suits the data.
        DBDirError: The data belong to another user, or a file of keys is missing or open to others.
    """
    private_file(password_file(db))
    programs = server_programs(db)
    home = data_home(db)
    owner = owner_of(home)
    bound = host.strip("[]")
    make_keys(db, programs.variant)
    argv = [
        *(str(programs.server), "--no-defaults"),
        *server_options(
            programs,
            home,
            durable=db.settings.get("durability") != "relaxed",
            memory=db.settings.get("memory", MEMORY),
        ),
        *(f"--bind-address={bound or '*'}", f"--port={port}"),
        *owner.options,
        *_tls_options(db, home, owner),
    ]
    probed = Address(state="running", host=_WILDCARDS.get(bound, bound), port=port, protocol=PROTOCOL)
    return ServerPlan(
        argv=argv,
        host=host,
        port=port,
        protocol=PROTOCOL,
        details={"tls": "on"},
        is_ready=_Probe(db, probed),
        env=ENVIRONMENT,
        cwd=home / "data",
        user=owner.name if owner.is_other else None,
        # SIGTERM hangs it while it starts, when nobody is left to say more. It recovers from this.
        orphaned=signal.SIGKILL,
        ready_timeout=_READY_TIMEOUT,
    )


def _tls_options(db: DBDir, home: Path, owner: Owner) -> list[str]:
    """Give the server copies of its own: its account may have no way into ``keys``."""
    copies = home / "tls" / "certificate.pem", home / "tls" / "key.pem"
    for copy, file in zip(copies, (certificate_file(db), key_file(db)), strict=True):
        owner.write(copy, private_file(file))
    return [f"--ssl-cert={copies[0]}", f"--ssl-key={copies[1]}", "--require-secure-transport=ON"]


class _Probe:
    """Asks the server by a real login: an open port, and even a greeting, come too early."""

    def __init__(self, db: DBDir, address: Address) -> None:
        self._db = db
        self._address = address
        self._refused_since = math.inf

    def __call__(self, seconds: float) -> bool:
        from balsam_mysql.connecting import connect

        try:
            whole = max(1, math.ceil(seconds))
            connection = connect(self._db, self._address, timeout=whole, read_timeout=whole)
        except DBDirError:
            raise
        except Unavailable:  # what repeating doesn't cure, unless another server had the port
            now = time.monotonic()
            self._refused_since = min(self._refused_since, now)
            if now - self._refused_since > _REFUSALS:
                raise
            return False
        except Exception as err:
            import MySQLdb

            if isinstance(err, MySQLdb.Error):
                return False
            raise
        connection.close()
        return True
