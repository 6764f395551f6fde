"""How to run the DB's own server: one foreground ``postgres`` on a TCP port, configured anew for each start."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core.plugin import (
    Address,
    BackendError,
    DBDirError,
    ServerPlan,
    is_loopback,
    local_host,
    make_certificate,
)
from balsam_postgres import configuration
from balsam_postgres.accounts import account_of
from balsam_postgres.init_files import data_directory, server_programs
from balsam_postgres.keys import certificate_file, key_file, read_key

if TYPE_CHECKING:
    from balsam_core.plugin import DBDir, ServerAccount
    from balsam_postgres.programs import Programs

logger = logging.getLogger(__name__)

PROTOCOL = "postgresql"
_STOP = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0))  # fast shutdown; SIGTERM would wait for clients to leave
_SHARED_MEMORY = re.compile(rb"^dynamic_shared_memory_type = '?(posix|sysv|mmap)\b", re.MULTILINE)
_NO_PROCESS = 2**22 + 1  # larger than any process id of Linux
_LOCK_LINES = 7  # of a complete postmaster.pid, at least


def server_plan(db: DBDir, host: str, port: int, *, tls: bool) -> ServerPlan:
    """Return how to run the server; its configuration is written.

    With ``tls`` connections must be encrypted; those of this machine are not where the programs can't.

    Raises:
        BackendError: The programs are missing or of another version than the data, or can't encrypt.
        DBDirError: The data are missing, damaged or somebody else's.
    """
    programs = server_programs(db)
    data = data_directory(db)
    account = account_of(data)
    remote = not is_loopback(host)
    # On the loopback, too, for clients that would tell the password to whoever listens there after it has died.
    encrypted = tls and _can_encrypt(programs, data, account)
    if tls and remote and not encrypted:
        raise BackendError(
            f"PostgreSQL {programs.version} in {programs.bindir} was built without encryption, which other hosts need: "
            f"use another PostgreSQL (option bindir), or, in a network that you trust, balsam dbserver --no-tls"
        )
    if encrypted:
        make_certificate(certificate_file(db), key_file(db))
        account.write(data / "server.key", read_key(db))
        account.write(data / "server.crt", certificate_file(db).read_bytes())
    site_file = (data / "site.conf").exists()
    content = configuration.settings(encrypted=encrypted, site_file=site_file, shared_memory=_shared_memory(data))
    account.write(data / "postgresql.conf", content)
    account.write(data / "pg_hba.conf", configuration.access_rules(encrypted=encrypted, remote=remote))
    if site_file:
        _warn_of_risks(programs, data, account)
    _clear_stale_lock(data, account)
    details = {"tls": "on" if encrypted else "off"}
    probed = Address(state="running", host=local_host(host), port=port, protocol=PROTOCOL, details=details)
    return ServerPlan(
        argv=[
            *account.prefix, programs.path("postgres"), "-D", str(data), "-p", str(port),
            "-c", f"listen_addresses={host or '*'}", "-c", "lc_messages=C",
        ],
        host=host,
        port=port,
        protocol=PROTOCOL,
        is_ready=lambda seconds: _answers(db, probed, seconds),
        details=details,
        env={"LC_ALL": "C"},
        unset=("PG",),
        cwd=data,
        user=account.user,
        stop=_STOP,
    )  # fmt: skip


def _shared_memory(data: Path) -> str:
    """Return which kind of shared memory initdb has found to work here, empty where it didn't say."""
    with contextlib.suppress(OSError):
        if found := _SHARED_MEMORY.search((data / "postgresql.conf").read_bytes()):
            return found[1].decode()
    return ""


def _answers(db: DBDir, address: Address, seconds: float) -> bool:
    """Say whether the server accepts Balsam's role."""
    import psycopg

    from balsam_postgres.connecting import connect

    if not _is_marked_ready(data_directory(db), address.port):
        return False  # otherwise an unknown program that listens there would be asked
    try:
        with connect(db, address, timeout=seconds) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def _is_marked_ready(data: Path, port: int) -> bool:
    # Counted from the end: the second line is the path of the data, which may hold line breaks. Without a socket, the
    # line for it, after the port, may be missing.
    lines = [line.strip() for line in _lock_lines(data)]
    return len(lines) >= _LOCK_LINES and lines[-1] == "ready" and str(port) in lines[-5:-3]


def _lock_lines(data: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (data / "postmaster.pid").read_bytes()[:4096].decode(errors="replace").splitlines()
    return []


def _clear_stale_lock(data: Path, account: ServerAccount) -> None:
    """Let a server start although the lock file of one that was killed names a process that is another program now.

    PostgreSQL checks only whether the process lives. It also checks whether processes of the old server still use its
    shared memory. That check must stay, so the file does, with the number of no process.
    """
    lines = _lock_lines(data)
    if lines and lines[0].strip().isdigit() and _is_other_program(int(lines[0]), data):
        with contextlib.suppress(OSError, DBDirError):
            rest = (data / "postmaster.pid").read_bytes().partition(b"\n")[2]
            account.write(data / "postmaster.pid", b"%d\n%s" % (_NO_PROCESS, rest))


def _is_other_program(pid: int, data: Path) -> bool:
    """Say whether a process is proven to be no server on these data: that runs, has the name and works in the folder.

    A process that has ended, but whose parent has not asked for its exit code, still has the number.
    """
    try:
        name, state = Path(f"/proc/{pid}/stat").read_bytes().split(b"(", 1)[1].rsplit(b") ", 1)
        return state[:1] in b"ZX" or name != b"postgres" or not Path(f"/proc/{pid}/cwd").samefile(data)
    except (OSError, ValueError, IndexError):
        return False


def _can_encrypt(programs: Programs, data: Path, account: ServerAccount) -> bool:
    done = account.run([programs.path("postgres"), "-C", "ssl", "-D", str(data), "-c", "ssl=on"], unset=("PG",))
    return done.returncode == 0 or b"not supported by this build" not in done.stderr


def _warn_of_risks(programs: Programs, data: Path, account: ServerAccount) -> None:
    """Log what ``site.conf`` has made less safe; each question takes 20 ms."""
    for name, risk in configuration.DURABILITY_RISKS.items():
        done = account.run([programs.path("postgres"), "-C", name, "-D", str(data)], unset=("PG",))
        if done.stdout.strip() == b"off":
            logger.warning("site.conf says %s=off: %s", name, risk)
