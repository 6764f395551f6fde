"""Filling an empty data directory: the system tables, one database, and the one account that may use it.

What is particular to MariaDB and to MySQL is here and in :mod:`balsam_mysql.configuration`. MySQL's half follows its
manual (https://dev.mysql.com/doc/refman/8.4/en/data-directory-initialization.html) and has never been run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core.plugin import BackendError, shown
from balsam_mysql.configuration import ACCOUNT, DATABASE, ENVIRONMENT, file_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balsam_mysql.accounts import Owner
    from balsam_mysql.programs import Programs

__all__ = ["make_data"]

_TIMEOUT = 300.0  # seconds
# In this order. The help texts are left out: nobody reads them here, and they are most of the work.
_SCRIPTS = ("system_tables.sql", "performance_tables.sql", "system_tables_data.sql")
_MORE_SCRIPTS = ("maria_add_gis_sp_bootstrap.sql",)
_SHARES = ("share/mariadb", "share/mysql", "share", "scripts")

_DATABASE = [
    # Said explicitly: the character set alone would bring its own default, which takes `a` for `A`.
    f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    f"CREATE USER {ACCOUNT}@'%' IDENTIFIED BY '{{password}}'",
    f"GRANT ALL PRIVILEGES ON {DATABASE}.* TO {ACCOUNT}@'%'",
]


def make_data(programs: Programs, home: Path, owner: Owner, password: str) -> None:
    """Fill ``home/data``; no process is left and at no time did an account without a password listen.

    Args:
        programs: The server's program.
        home: Folder with the empty folders ``data`` and ``tmp``.
        owner: Whose they are.
        password: Of the account; letters and digits.

    Raises:
        BackendError: The program fails.
    """
    (_make_mariadb if programs.variant == "mariadb" else _make_mysql)(programs, home, owner, password)


def _make_mariadb(programs: Programs, home: Path, owner: Owner, password: str) -> None:
    statements = [
        # All but the locked owner of the system views.
        "DELETE FROM mysql.global_priv WHERE User <> 'mariadb.sys'",
        "DELETE FROM mysql.proxies_priv",
        "DELETE FROM mysql.db",
        "FLUSH PRIVILEGES",
        *_DATABASE,
    ]
    script = b"".join(
        [
            # Else the scripts would make the accounts of old, without passwords, and for this host's name.
            b"CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = 'root';\n",
            *(path.read_bytes() + b"\n" for path in _scripts(programs)),
            *(f"{statement};\n".format(password=password).encode() for statement in statements),
        ]
    )
    argv: list[str | Path] = [
        *(programs.server, "--no-defaults", "--bootstrap", "--silent-startup", "--log-warnings=0"),
        *file_options(programs, home),
        *("--max-allowed-packet=8M", "--net-buffer-length=16K", "--enforce-storage-engine="),
        *owner.options,
    ]
    _run(argv, programs, owner, script)


def _scripts(programs: Programs) -> list[Path]:
    """Return MariaDB's own scripts for the system tables; newer versions named them anew."""
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


def _make_mysql(programs: Programs, home: Path, owner: Owner, password: str) -> None:
    """First the system tables, then the accounts, which MySQL can't make in the same go.

    The second server has no TCP port, and its socket is in a folder that nobody else can enter. It reads the statements
    before it accepts anyone.
    """
    files = [*file_options(programs, home), *owner.options]
    _run([programs.server, "--no-defaults", "--initialize-insecure", *files], programs, owner, b"")
    statements = [
        *_DATABASE,
        # Statements are run as this account, so its end comes last.
        "ALTER USER root@localhost IDENTIFIED BY '{password}-{salt}' ACCOUNT LOCK",
    ]
    salt = os.urandom(24).hex()
    with tempfile.TemporaryDirectory(prefix="balsam-") as short:  # a socket's path has at most 107 bytes
        folder = Path(short)
        script = folder / "accounts.sql"
        script.touch(mode=0o600)
        script.write_text("".join(f"{text};\n".format(password=password, salt=salt) for text in statements))
        owner.give(folder)
        owner.give(script)
        argv: list[str | Path] = [programs.server, "--no-defaults", *files, "--skip-networking", "--mysqlx=OFF"]
        argv += ["--skip-log-bin", f"--socket={folder / 's'}", f"--pid-file={folder / 'pid'}", f"--init-file={script}"]
        _run_until_ready(argv, programs, owner)


def _run(argv: Sequence[str | Path], programs: Programs, owner: Owner, script: bytes) -> None:
    try:
        done = subprocess.run(
            argv,
            input=script,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
            cwd="/",
            umask=0o077,
            env={**os.environ, **ENVIRONMENT},
            **owner.process,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise BackendError(f"{programs.title} can't make its system tables: {err}") from err
    if done.returncode:
        raise _failed(programs, done.stdout + done.stderr)


def _run_until_ready(argv: Sequence[str | Path], programs: Programs, owner: Owner) -> None:
    """Run a server until it says that it would now accept connections, and stop it."""
    said = []
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        umask=0o077,
        env={**os.environ, **ENVIRONMENT},
        **owner.process,
    ) as server:
        try:
            ready = False
            for line in server.stdout or ():
                said.append(line)
                if b"ready for connections" in line and not ready:
                    ready = True
                    server.terminate()
            status = server.wait(_TIMEOUT)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            raise
    if not ready or status:
        raise _failed(programs, b"".join(said))


def _failed(programs: Programs, output: bytes) -> BackendError:
    lines = [" ".join(line.split()) for line in output.decode(errors="replace").splitlines() if line.strip()]
    # The first error tells most; statements are never quoted, for the sake of the password.
    telling = [line for line in lines if "ERROR" in line] or lines[-1:] or ["it said nothing"]
    return BackendError(f"{programs.title} can't make its system tables: {telling[0][:300]}")
