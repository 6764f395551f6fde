"""The server's process: how to run it, and whether it works."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import ssl
import subprocess
import time
from typing import TYPE_CHECKING

from balsam_core.plugin import (
    Address,
    BackendError,
    DBDirError,
    ServerPlan,
    Unavailable,
    is_loopback,
    make_certificate,
    private_file,
    shown,
    write_private,
)
from balsam_mysql.accounts import owner_of
from balsam_mysql.files import data_home, server_programs
from balsam_mysql.keys import certificate_file, key_file, password_file, pin_file
from balsam_mysql.options import ENVIRONMENT, MEMORY, server_options

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import DBDir
    from balsam_mysql.accounts import Owner
    from balsam_mysql.programs import Programs

__all__ = ["server_plan"]

PROTOCOL = "mysql"
_READY_TIMEOUT = 120.0  # seconds; after a crash much may have to be recovered
_REFUSALS = 5.0  # seconds of a refused password, after which it is no other server that had the port a moment ago
_WILDCARDS = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def server_plan(db: DBDir, host: str, port: int, *, tls: bool) -> ServerPlan:
    """Return how to serve the data of a DB directory.

    Args:
        db: The directory.
        host: Where to listen.
        port: Where to listen.
        tls: Whether other hosts must encrypt.

    Raises:
        BackendError: There is no program that suits the data, or it can't encrypt.
        DBDirError: The data belong to another user, or a file of keys is missing or open to others.
    """
    private_file(password_file(db))
    programs = server_programs(db)
    home = data_home(db)
    owner = owner_of(home)
    bound = host.strip("[]")
    # MySQL's way of passwords needs TLS everywhere, and each of its builds can do it.
    encrypt = programs.variant == "mysql" or (tls and not is_loopback(bound))
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
        *(_tls_options(db, programs, home, owner) if encrypt else ["--skip-ssl"]),
    ]
    details = {"tls": "on" if encrypt else "off"}
    probed = Address(state="running", host=_WILDCARDS.get(bound, bound), port=port, protocol=PROTOCOL, details=details)
    return ServerPlan(
        argv=argv,
        host=host,
        port=port,
        protocol=PROTOCOL,
        is_ready=_Probe(db, probed),
        details=details,
        env=ENVIRONMENT,
        cwd=home / "data",
        user=owner.name if owner.is_other else None,
        # SIGTERM hangs it while it starts, when nobody is left to say more. It recovers from this.
        orphaned=signal.SIGKILL,
        ready_timeout=_READY_TIMEOUT,
    )


def _tls_options(db: DBDir, programs: Programs, home: Path, owner: Owner) -> list[str]:
    if programs.variant == "mariadb":
        _check_tls(programs)
    certificate, key = certificate_file(db), key_file(db)
    make_certificate(certificate, key)
    pem = private_file(certificate)
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    pins = [f"[balsam-{kind}]\nssl-fp={hashlib.new(kind, der).hexdigest()}\n" for kind in ("sha1", "sha256")]
    write_private(pin_file(db), "".join(pins).encode())
    for file in (certificate, key, pin_file(db)):
        _give_like(file, db.keys)
    # Copies of the server's own: its account may have no way into `keys`.
    copies = home / "tls" / "certificate.pem", home / "tls" / "key.pem"
    for copy, data in zip(copies, (pem, private_file(key)), strict=True):
        write_private(copy, data)
        owner.give(copy)
    return [f"--ssl-cert={copies[0]}", f"--ssl-key={copies[1]}", "--require-secure-transport=ON"]


def _give_like(file: Path, model: Path) -> None:
    """Give a file that root made to the owner of the DB directory."""
    if os.geteuid() == 0:
        status = model.stat()
        os.chown(file, status.st_uid, status.st_gid, follow_symlinks=False)


def _check_tls(programs: Programs) -> None:
    """Raise BackendError where the server was built without TLS."""
    try:
        said = subprocess.run(
            [programs.server, "--no-defaults", "--verbose", "--help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            check=False,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise BackendError(f"{shown(programs.server)} can't be run: {err}") from err
    if b"--ssl-cert=" not in said.stdout:
        raise BackendError(
            f"{shown(programs.server)} can't encrypt connections: install one that can, or accept that passwords and "
            f"jobs can be read on the network with balsam dbserver --no-tls"
        )


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
