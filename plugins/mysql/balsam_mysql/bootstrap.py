"""Filling an empty data directory: the system tables, one database, and the one account that may use it.

MariaDB's own script for this doesn't accept every path and leaves administrators' accounts. So its SQL files are piped
to the server in bootstrap mode, which reads statements and never listens, followed by ours. No administrator's account
is left: there is no socket either, so nobody could use one.

MySQL's half follows its manual (https://dev.mysql.com/doc/refman/8.4/en/data-directory-initialization.html) and has
never been run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core.plugin import BackendError, failure_reason, shown
from balsam_mysql.configuration import (
    ACCOUNT,
    DATABASE,
    ENVIRONMENT,
    FOREIGN_VARIABLES,
    account_options,
    file_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balsam_core.plugin import ServerAccount
    from balsam_mysql.programs import Programs

_TIMEOUT = 300.0  # seconds
# In this order. The help texts are left out: nobody reads them here, and they are most of the work.
_SCRIPTS = ("system_tables.sql", "performance_tables.sql", "system_tables_data.sql")
_MORE_SCRIPTS = ("maria_add_gis_sp_bootstrap.sql",)
_SHARES = ("share/mariadb", "share/mysql", "share", "scripts")

_DATABASE_STATEMENTS = [
    # The collation is explicit: the default one of the character set takes `a` for `A`.
    f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    f"CREATE USER {ACCOUNT}@'%' IDENTIFIED BY '{{password}}'",
    f"GRANT ALL PRIVILEGES ON {DATABASE}.* TO {ACCOUNT}@'%'",
]


def make_data(programs: Programs, home: Path, account: ServerAccount, password: str) -> None:
    """Fill ``home/data``. No process is left, and an account without a password can be used at no time.

    ``home`` holds the empty folders ``data`` and ``tmp``; the password of the database account has only letters and
    digits.

    Raises:
        BackendError: The program fails.
    """
    if programs.variant == "mariadb":
        _make_mariadb_data(programs, home, account, password)
    else:
        _make_mysql_data(programs, home, account, password)


def _make_mariadb_data(programs: Programs, home: Path, account: ServerAccount, password: str) -> None:
    statements = [
        # All but the locked owner of the system views.
        "DELETE FROM mysql.global_priv WHERE User <> 'mariadb.sys'",
        "DELETE FROM mysql.proxies_priv",
        "DELETE FROM mysql.db",
        "FLUSH PRIVILEGES",
        *_DATABASE_STATEMENTS,
    ]
    script = b"".join(
        [
            # Without the variable the scripts would make accounts without passwords, and for this host's name.
            b"CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = 'root';\n",
            *(path.read_bytes() + b"\n" for path in _system_table_scripts(programs)),
            *(f"{statement};\n".format(password=password).encode() for statement in statements),
        ]
    )
    argv: list[str | Path] = [
        *(programs.server, "--no-defaults", "--bootstrap", "--silent-startup", "--log-warnings=0"),
        *file_options(programs, home),
        *("--max-allowed-packet=8M", "--net-buffer-length=16K", "--enforce-storage-engine="),
        *account_options(account),
    ]
    _run_server(argv, programs, account, script)


def _system_table_scripts(programs: Programs) -> list[Path]:
    """Return MariaDB's own scripts for the system tables; newer versions have another prefix."""
    for share in _SHARES:
        folder = programs.basedir / share
        for prefix in ("mysql_", "mariadb_"):
            found = [folder / f"{prefix}{name}" for name in _SCRIPTS]
            if all(script.is_file() for script in found):
                return [*found, *(path for name in _MORE_SCRIPTS if (path := folder / name).is_file())]
    raise BackendError(
        f"{shown(programs.server)} lacks its file mysql_system_tables.sql below {shown(programs.basedir)}: "
        f"install MariaDB's server completely"
    )


def _make_mysql_data(programs: Programs, home: Path, account: ServerAccount, password: str) -> None:
    """Make the system tables, then the accounts, which MySQL can't do in one run.

    In the second run the server has no TCP port, and its socket is in a folder that nobody else can enter. It reads the
    statements before it accepts anyone.
    """
    files = [*file_options(programs, home), *account_options(account)]
    _run_server([programs.server, "--no-defaults", "--initialize-insecure", *files], programs, account, b"")
    statements = [
        *_DATABASE_STATEMENTS,
        # The statements are run as this account, so it is locked last.
        "ALTER USER root@localhost IDENTIFIED BY '{password}-{salt}' ACCOUNT LOCK",
    ]
    salt = os.urandom(24).hex()
    with tempfile.TemporaryDirectory(prefix="balsam-") as short:  # a socket's path has at most 107 bytes
        folder = Path(short)
        script = folder / "accounts.sql"
        script.touch(mode=0o600)
        script.write_text("".join(f"{text};\n".format(password=password, salt=salt) for text in statements))
        account.give(folder)
        account.give(script)
        argv: list[str | Path] = [programs.server, "--no-defaults", *files, "--skip-networking", "--mysqlx=OFF"]
        argv += ["--skip-log-bin", f"--socket={folder / 's'}", f"--pid-file={folder / 'pid'}", f"--init-file={script}"]
        _run_server_until_ready(argv, programs, account)


def _run_server(argv: Sequence[str | Path], programs: Programs, account: ServerAccount, script: bytes) -> None:
    done = account.run(argv, stdin=script, env=ENVIRONMENT, unset=FOREIGN_VARIABLES, timeout=_TIMEOUT)
    if done.returncode:
        raise _bootstrap_error(programs, done.stdout + done.stderr)


def _run_server_until_ready(argv: Sequence[str | Path], programs: Programs, account: ServerAccount) -> None:
    """Run a server until it reports that it accepts connections, and stop it."""
    output = []
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        umask=0o077,
        env={**os.environ, **ENVIRONMENT},
        **account.popen_arguments,
    ) as server:
        try:
            is_ready = False
            for line in server.stdout or ():
                output.append(line)
                if b"ready for connections" in line and not is_ready:
                    is_ready = True
                    server.terminate()
            status = server.wait(_TIMEOUT)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            raise
    if not is_ready or status:
        raise _bootstrap_error(programs, b"".join(output))


def _bootstrap_error(programs: Programs, output: bytes) -> BackendError:
    return BackendError(f"{programs.title} can't make its system tables: {failure_reason(output)}")
