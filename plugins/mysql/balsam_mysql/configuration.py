"""How the server is configured: by arguments alone. No option file is written or read, so any path can be used."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import ServerAccount
    from balsam_mysql.programs import Programs

ACCOUNT = "balsam"
DATABASE = "balsam"
ENVIRONMENT = {"UMASK": "0600", "UMASK_DIR": "0700"}  # MariaDB and MySQL ignore the process's own umask
FOREIGN_VARIABLES = ("MYSQL", "MARIADB")  # beginnings of names; they are meant for other servers
LOCK_TIMEOUT = 10  # seconds for a row; then the transport repeats
TABLE_LOCK_TIMEOUT = 30  # seconds for a table that is being changed
IDLE_WRITE_TIMEOUT = 30  # seconds that a client may do nothing in a transaction that has written
MAX_CONNECTIONS = 300
MEMORY = "128M"
SQL_MODE = "STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
_LOG_SIZE = "64M"  # of InnoDB's log; the same at each start, or it would be made anew


def file_options(programs: Programs, home: Path) -> list[str]:
    """Return the paths; the same while the data are made and while they are served."""
    return [
        f"--basedir={programs.basedir}",
        f"--datadir={home / 'data'}",
        f"--tmpdir={home / 'tmp'}",
        *([f"--innodb-log-file-size={_LOG_SIZE}"] if programs.variant == "mariadb" else []),
    ]


def account_options(account: ServerAccount) -> list[str]:
    """Return what the server needs to run as an account.

    It runs as root only if told to, which root's own data need: no other account can enter a private directory of
    root's.
    """
    return ["--user=root"] if account.user is None and os.geteuid() == 0 else []


def server_options(programs: Programs, home: Path, *, durable: bool, memory: str = MEMORY) -> list[str]:
    """Return how the data are served: each commit is forced to disk, or, if not durable, about once a second."""
    settings = {
        "character-set-server": "utf8mb4",
        "collation-server": "utf8mb4_bin",
        "default-storage-engine": "InnoDB",
        "innodb-buffer-pool-size": memory,
        "innodb-doublewrite": "ON",
        "innodb-flush-log-at-trx-commit": 1 if durable else 2,
        "innodb-lock-wait-timeout": LOCK_TIMEOUT,
        "local-infile": "OFF",
        "lock-wait-timeout": TABLE_LOCK_TIMEOUT,
        "max-allowed-packet": "64M",
        "max-connections": MAX_CONNECTIONS,
        "performance-schema": "OFF",
        "pid-file": home / "server.pid",
        "secure-file-priv": home / "tmp",
        "socket": "",  # none: its path could be too long, and TCP is enough
        "sql-mode": SQL_MODE,
        "sync-binlog": 1,
        "transaction-isolation": "READ-COMMITTED",
        "wait-timeout": 7 * 24 * 3600,  # seconds until an idle client is dropped
    }
    variant_options = {
        "mariadb": ["--log-warnings=1", "--skip-symbolic-links"],
        # Its second protocol would listen on a port of its own.
        "mysql": ["--log-error-verbosity=2", "--mysqlx=OFF"],
    }
    return [
        *file_options(programs, home),
        *(f"--{name}={value}" for name, value in settings.items()),
        *("--skip-name-resolve", "--skip-log-bin"),
        *variant_options[programs.variant],
    ]
