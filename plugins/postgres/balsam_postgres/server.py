"""How to run the DB's own server: one foreground ``postgres`` on a TCP port, configured anew for each start."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core.plugin import (
    Address,
    BackendError,
    DBDirError,
    ServerPlan,
    atomic_write,
    is_loopback,
    make_certificate,
    private_file,
    shown,
)
from balsam_postgres.accounts import account_of
from balsam_postgres.bootstrap import DATABASE, ROLE, data_directory, find_own_server
from balsam_postgres.errors import DURABLE

if TYPE_CHECKING:
    from balsam_core.plugin import DBDir
    from balsam_postgres.accounts import Account
    from balsam_postgres.programs import Programs

__all__ = ["PROTOCOL", "certificate_file", "server_plan"]

logger = logging.getLogger(__name__)

PROTOCOL = "postgresql"
_STOP = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0))  # fast shutdown; SIGTERM would wait for clients to leave
_REPLACE = 'PATH=$PATH:/usr/bin:/bin; cat > "$0.new" && mv -f "$0.new" "$0"'
_NO_PROCESS = 2**22 + 1  # larger than any process id of Linux
_LOCK_LINES = 7  # of a complete postmaster.pid, at least
_WILDCARDS = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (to be recognised)

_CONFIGURATION = """\
# Written anew by Balsam for each start: put settings of your own into site.conf, in this folder.

# Who may connect, and how; the address and the port are given on the command line.
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
max_connections = 300
superuser_reserved_connections = 0
{tls}

# Modest: the machine is there for the jobs.
shared_buffers = 64MB
max_parallel_workers_per_gather = 0
max_parallel_maintenance_workers = 0
jit = off
# Tables that are filled and drained within minutes need their statistics sooner than by default.
autovacuum_naptime = 15s

# An acknowledged write is on the disk. What these three trade for speed is not only the last moments.
fsync = on
full_page_writes = on
synchronous_commit = on

# To stderr, which ends up in log/ of the DB directory; never a statement, which holds users' data.
log_destination = 'stderr'
logging_collector = off
log_min_messages = warning
log_min_error_statement = panic
log_statement = 'none'
log_checkpoints = off
log_line_prefix = '[%p] '
log_timezone = 'UTC'
timezone = 'UTC'
datestyle = 'ISO, MDY'
lc_messages = 'C'
default_text_search_config = 'pg_catalog.simple'

{include}
"""
_TLS = "ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_min_protocol_version = 'TLSv1.2'"

_ACCESS = """\
# Written anew by Balsam for each start. One role, one database, always with the password; nobody else.
host    {database} {role} 127.0.0.1/32 scram-sha-256
host    {database} {role} ::1/128      scram-sha-256
{others}"""


def certificate_file(db: DBDir) -> Path:
    """Return the path of the certificate that clients pin."""
    return db.keys / "postgres.crt"


def server_plan(db: DBDir, host: str, port: int, *, tls: bool) -> ServerPlan:
    """Return how to run the server; its configuration is written.

    Args:
        db: The DB directory.
        host: Where to listen.
        port: Where to listen.
        tls: Whether connections must be encrypted; those of this machine are not where the programs can't.

    Raises:
        BackendError: The programs are missing or of another version than the data, or can't encrypt.
        DBDirError: The data is missing, damaged or somebody else's.
    """
    host = host.strip("[]")
    programs = find_own_server(db)
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
        make_certificate(certificate_file(db), db.keys / "postgres.key")
        _write(data / "server.key", _owners_key(db), account)
        _write(data / "server.crt", certificate_file(db).read_bytes(), account)
    others = f"{'hostssl' if encrypted else 'host   '} {DATABASE} {ROLE} all          scram-sha-256\n" if remote else ""
    has_site = (data / "site.conf").exists()
    include = "include = 'site.conf'" if has_site else ""
    configuration = _CONFIGURATION.format(tls=_TLS if encrypted else "ssl = off", include=include)
    _write(data / "postgresql.conf", configuration.encode(), account)
    access = _ACCESS.format(database=DATABASE, role=ROLE, others=others)
    _write(data / "pg_hba.conf", access.encode(), account)
    if has_site:
        _warn(programs, data, account)
    _disown_lock(data, account)
    details = {"tls": "on" if encrypted else "off"}
    probed = Address(state="running", host=_WILDCARDS.get(host, host), port=port, protocol=PROTOCOL, details=details)
    return ServerPlan(
        argv=[
            *account.prefix, programs.path("postgres"), "-D", str(data), "-p", str(port),
            "-c", f"listen_addresses={host or '*'}",
        ],
        host=host,
        port=port,
        protocol=PROTOCOL,
        is_ready=lambda seconds: _answers(db, probed, seconds),
        details=details,
        cwd=data,
        user=account.user,
        stop=_STOP,
    )  # fmt: skip


def _answers(db: DBDir, address: Address, seconds: float) -> bool:
    """Say whether the server accepts Balsam's role."""
    import psycopg

    from balsam_postgres.connecting import connect

    if not _says_ready(data_directory(db), address.port):
        return False  # so that whoever else listens there is not asked
    try:
        with connect(db, address, timeout=seconds) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def _says_ready(data: Path, port: int) -> bool:
    # From the end: the second line is the path of the data, which may hold line breaks. Without a socket, the line
    # for it, after the port, may be missing.
    lines = [line.strip() for line in _lock_lines(data)]
    return len(lines) >= _LOCK_LINES and lines[-1] == "ready" and str(port) in lines[-5:-3]


def _lock_lines(data: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (data / "postmaster.pid").read_bytes()[:4096].decode(errors="replace").splitlines()
    return []


def _disown_lock(data: Path, account: Account) -> None:
    """Let a server start although a lock file, left by one that was killed, names a process that is something else now.

    PostgreSQL looks only whether the process lives. Its second look, whether processes of the old server still use its
    shared memory, must stay, so the file does, with the number of no process.
    """
    lines = _lock_lines(data)
    if lines and lines[0].strip().isdigit() and _is_other(int(lines[0]), data):
        with contextlib.suppress(OSError):
            rest = (data / "postmaster.pid").read_bytes().partition(b"\n")[2]
            _write(data / "postmaster.pid", b"%d\n%s" % (_NO_PROCESS, rest), account)


def _is_other(pid: int, data: Path) -> bool:
    """Say whether a process is proven to be no server on this data: one that runs, is named so and works in its folder.

    One that has ended but whose parent doesn't ask for its exit code still has the number.
    """
    try:
        name, state = Path(f"/proc/{pid}/stat").read_bytes().split(b"(", 1)[1].rsplit(b") ", 1)
        return state[:1] in b"ZX" or name != b"postgres" or not Path(f"/proc/{pid}/cwd").samefile(data)
    except (OSError, ValueError, IndexError):
        return False


def _can_encrypt(programs: Programs, data: Path, account: Account) -> bool:
    done = account.run([programs.path("postgres"), "-C", "ssl", "-D", str(data), "-c", "ssl=on"])
    return done.returncode == 0 or b"not supported by this build" not in done.stderr


def _warn(programs: Programs, data: Path, account: Account) -> None:
    """Log what ``site.conf`` has made less safe; asked only where there is one, for it takes 20 ms each."""
    for name, danger in DURABLE.items():
        done = account.run([programs.path("postgres"), "-C", name, "-D", str(data)])
        if done.stdout.strip() == b"off":
            logger.warning("site.conf says %s=off: %s", name, danger)


def _owners_key(db: DBDir) -> bytes:
    """Return the server's key. Root, who gives it to another user's server, takes it from nobody but that user."""
    key = db.keys / "postgres.key"
    private_file(key)
    with open(os.open(key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123  (a descriptor)
        if os.geteuid() == 0 and os.fstat(file.fileno()).st_uid != db.path.stat().st_uid:
            raise DBDirError(f"{shown(key)} belongs to another user than its DB directory: give it to that user")
        return file.read()


def _write(path: Path, text: bytes, account: Account) -> None:
    """Write a file of the server, as the account that owns the data where that is another's: root follows no links."""
    if account.user is None:
        atomic_write(path, text)
        return
    done = account.run(["/bin/sh", "-c", _REPLACE, str(path)], stdin=text)
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise DBDirError(f"{shown(path)} can't be written as {account.user}: {said[:300]}")
