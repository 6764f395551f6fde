"""Backup and restore with ``pg_dump`` and ``pg_restore``, which carry a database from one major version to the next."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

from balsam_core.plugin import BackendError, Corrupt, ServerNotRunning, Unavailable, shown
from balsam_postgres.bootstrap import find_own_server, stored_password
from balsam_postgres.connecting import adopted_parameters, adopted_password, connect_adopted, own_parameters
from balsam_postgres.programs import find_client

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import Address, DBDir

__all__ = ["dump", "load"]

_MAGIC = b"PGDMP"
_PRIVATE = ["--no-owner", "--no-privileges", "--no-password"]


def dump(db: DBDir, address: Address | None, target: Path) -> None:
    """Write a consistent backup while the database is in use.

    Raises:
        Unavailable: The database can't be reached, or the file can't be written.
        BackendError: The program is missing.
    """
    try:
        _run(db, address, "pg_dump", ["--format=custom", *_PRIVATE, f"--file={target}"])
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise


def load(db: DBDir, address: Address | None, source: Path) -> None:
    """Fill the empty database.

    Raises:
        Corrupt: The file is no backup of a PostgreSQL database, or is damaged.
        Unavailable: The database can't be reached.
        BackendError: The program is missing.
    """
    with source.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise Corrupt(f"{shown(source)} is no backup of a PostgreSQL database")
    _run(db, address, "pg_restore", ["--single-transaction", "--exit-on-error", *_PRIVATE], str(source))


def _run(db: DBDir, address: Address | None, name: str, options: list[str], *files: str) -> None:
    password: str | None
    if "url" in db.settings:
        try:
            with connect_adopted(db) as connection:
                major = connection.info.server_version // 10000
        except psycopg.Error as err:
            raise Unavailable(f"the database can't be reached: {' '.join(str(err).split())}") from err
        programs = find_client(db.settings.get("bindir", ""), major=major)
        parameters, password = adopted_parameters(db.settings, programs.major * 10000), adopted_password(db)
    else:
        if address is None:
            place = shown(db.path)
            raise ServerNotRunning(
                f"the server of {place} is not running: start it with balsam dbserver --path={place}"
            )
        programs = find_own_server(db)
        if not os.access(programs.path(name), os.X_OK):
            programs = find_client(db.settings.get("bindir", ""), major=programs.major)
        parameters, password = own_parameters(db, address, programs.major * 10000), stored_password(db)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    if password is not None:
        env["PGPASSWORD"] = password  # which only this user can see
    parameters["options"] = ""  # it waits as long as it takes
    try:
        done = subprocess.run(
            [programs.path(name), *options, f"--dbname={make_conninfo(**parameters)}", *files],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=env,
            umask=0o077,
        )
    except OSError as err:
        raise BackendError(
            f"{shown(programs.path(name))} can't be started: {(err.strerror or str(err)).lower()}"
        ) from err
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    said = "; ".join(lines[:3])[:500]
    if name == "pg_restore" and any(word in said for word in ("archive", "file header", "end of file", "compress")):
        raise Corrupt(f"the backup can't be read, it is damaged or of a newer PostgreSQL ({said})")
    raise Unavailable(f"{name} failed: {said}")
