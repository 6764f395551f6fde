"""The server's process: how to run it, and whether it works."""

from __future__ import annotations

import math
import signal
import time
from typing import TYPE_CHECKING

from balsam_core.plugin import Address, ServerAccount, ServerPlan, Unavailable, local_host, private_file
from balsam_mysql.configuration import ENVIRONMENT, FOREIGN_VARIABLES, MEMORY, account_options, server_options
from balsam_mysql.init_files import server_home, server_programs
from balsam_mysql.keys import certificate_file, key_file, make_keys

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import DBDir

PROTOCOL = "mysql"
_READY_TIMEOUT = 120.0  # seconds; after a crash much may have to be recovered
_REFUSED_TIMEOUT = 5.0  # seconds of refused passwords, after which it is not the server that had the port before


def server_plan(db: DBDir, host: str, port: int) -> ServerPlan:
    """Return how to serve the data of a DB directory: always with TLS, which every build of MariaDB and MySQL can do.

    Raises:
        BackendError: There is no program that suits the data.
        DBDirError: The data belong to another user, or a file of keys is missing or open to others.
    """
    programs = server_programs(db)
    home = server_home(db)
    account = ServerAccount.owner_of(home)
    make_keys(db, programs.variant)
    durable, memory = db.settings.get("durability") != "relaxed", db.settings.get("memory", MEMORY)
    argv = [
        *(str(programs.server), "--no-defaults"),
        *server_options(programs, home, durable=durable, memory=memory),
        *(f"--bind-address={host or '*'}", f"--port={port}"),
        *account_options(account),
        *_tls_options(db, home, account),
    ]
    return ServerPlan(
        argv=argv,
        host=host,
        port=port,
        protocol=PROTOCOL,
        details={"tls": "on"},
        is_ready=_Probe(db, Address(state="running", host=local_host(host), port=port, protocol=PROTOCOL)),
        env=ENVIRONMENT,
        unset=FOREIGN_VARIABLES,
        cwd=home / "data",
        user=account.user,
        # A SIGTERM while it starts can hang it, when no watchdog is left to kill it. It recovers from SIGKILL.
        orphaned=signal.SIGKILL,
        ready_timeout=_READY_TIMEOUT,
    )


def _tls_options(db: DBDir, home: Path, account: ServerAccount) -> list[str]:
    """Give the server copies of its certificate and key: its account may be unable to enter ``keys``."""
    certificate, key = home / "tls" / "certificate.pem", home / "tls" / "key.pem"
    account.write(certificate, private_file(certificate_file(db)))
    account.write(key, private_file(key_file(db)))
    return [f"--ssl-cert={certificate}", f"--ssl-key={key}", "--require-secure-transport=ON"]


class _Probe:
    """Asks the server by a real login: it accepts connections, and even greets, before it is ready."""

    def __init__(self, db: DBDir, address: Address) -> None:
        self._db = db
        self._address = address
        self._refused_since = math.inf

    def __call__(self, seconds: float) -> bool:
        import MySQLdb

        from balsam_mysql.connecting import connect

        timeout = max(1, math.ceil(seconds))
        try:
            connect(self._db, self._address, timeout=timeout, read_timeout=timeout).close()
        except MySQLdb.Error:
            return False
        except Unavailable:  # permanent, unless the server that had the port before is still ending
            now = time.monotonic()
            self._refused_since = min(self._refused_since, now)
            if now - self._refused_since > _REFUSED_TIMEOUT:
                raise
            return False
        return True
