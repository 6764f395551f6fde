"""Options of the server's program. All are arguments: no file of options is written or read, so any path will do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_mysql.programs import Programs

__all__ = [
    "ACCOUNT",
    "DATABASE",
    "ENVIRONMENT",
    "IDLE_WRITE",
    "LOCK_WAIT",
    "MEMORY",
    "SQL_MODE",
    "TABLE_LOCK_WAIT",
    "file_options",
    "server_options",
]

ACCOUNT = "balsam"
DATABASE = "balsam"
ENVIRONMENT = {"UMASK": "0600", "UMASK_DIR": "0700"}  # MariaDB and MySQL don't heed the process's own umask
LOCK_WAIT = 10  # seconds for a row; then the transport repeats
TABLE_LOCK_WAIT = 30  # seconds for a table that is being changed
IDLE_WRITE = 30  # seconds that a client may do nothing in a transaction that has written
MAX_CONNECTIONS = 300
MEMORY = "128M"
SQL_MODE = "STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
_LOG_SIZE = "64M"  # of InnoDB's log; the same at each start, or it would be made anew


def file_options(programs: Programs, home: Path) -> list[str]:
    """Return where everything is; the same while the data are made and while they are served."""
    return [
        f"--basedir={programs.basedir}",
        f"--datadir={home / 'data'}",
        f"--tmpdir={home / 'tmp'}",
        *([f"--innodb-log-file-size={_LOG_SIZE}"] if programs.variant == "mariadb" else []),
    ]


def server_options(programs: Programs, home: Path, *, durable: bool, memory: str = MEMORY) -> list[str]:
    """Return how the data are served.

    Args:
        programs: The server's program.
        home: The server's folder.
        durable: Whether each commit is forced to disk; if not, about once a second.
        memory: Size of its cache.
    """
    settings = {
        "character-set-server": "utf8mb4",
        "collation-server": "utf8mb4_bin",
        "default-storage-engine": "InnoDB",
        "innodb-buffer-pool-size": memory,
        "innodb-doublewrite": "ON",
        "innodb-flush-log-at-trx-commit": 1 if durable else 2,
        "innodb-lock-wait-timeout": LOCK_WAIT,
        "local-infile": "OFF",
        "lock-wait-timeout": TABLE_LOCK_WAIT,
        "max-allowed-packet": "64M",
        "max-connections": MAX_CONNECTIONS,
        "performance-schema": "OFF",
        "pid-file": home / "server.pid",
        "secure-file-priv": home / "tmp",
        "socket": "",  # none at all: its path could be too long, and TCP does
        "sql-mode": SQL_MODE,
        "sync-binlog": 1,
        "transaction-isolation": "READ-COMMITTED",
        "wait-timeout": 7 * 24 * 3600,  # idle clients are dropped after this many seconds
    }
    only = {
        "mariadb": ["--log-warnings=1", "--skip-symbolic-links"],
        # Its second protocol would listen on a port of its own.
        "mysql": ["--log-error-verbosity=2", "--mysqlx=OFF"],
    }
    return [
        *file_options(programs, home),
        *(f"--{name}={value}" for name, value in settings.items()),
        *("--skip-name-resolve", "--skip-log-bin"),
        *only[programs.variant],
    ]
