"""What ``balsam init`` makes besides the tables: the server's data in ``postgres/`` of the DB directory."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from balsam_core.plugin import (
    Corrupt,
    DBDirError,
    InvalidInput,
    option_choice,
    option_value,
    read_password,
    reason,
    shown,
    store_password,
)
from balsam_postgres.programs import find_server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from balsam_core.plugin import DBDir
    from balsam_postgres.programs import Programs

_REMEDY = "restore the DB directory from a backup"


def data_directory(db: DBDir) -> Path:
    """Return the path of the server's data."""
    return db.path / "postgres"


def init_files(db: DBDir, options: Mapping[str, str]) -> dict[str, str]:
    """Make the data if the directory is new, else check them; return the settings to store.

    Raises:
        InvalidInput: An option has a wrong value; nothing was made.
        DBDirError: The data can't be made, or are damaged.
        BackendError: The programs are missing.
        Unavailable: The server that a URL names can't be used.
    """
    settings = {"durability": option_choice(db, options, "durability", ("full", "relaxed"))}
    if bindir := option_value(db, options, "bindir"):
        if not os.path.isabs(os.path.expanduser(bindir)):  # noqa: PTH111, PTH117  (a text to be stored as it is)
            raise InvalidInput(f"the option bindir is {bindir!a}: write the path in full")
        settings["bindir"] = bindir
    if "url" in db.settings or "url" in options:
        from balsam_postgres.adopting import adopt

        return adopt(db, options, settings)
    if "store_password" in options:
        raise InvalidInput("the option store_password is for a DB on somebody else's server: give --url, too")
    if not db.settings and not os.path.lexists(data_directory(db)):
        _make_directory(db, bindir, options.get("server_user", ""))
    elif options.get("server_user"):
        raise InvalidInput("the account of a server is chosen when the DB is made: leave server_user out")
    else:
        find_server(bindir, major=check_data(db))
    return settings


def check_data(db: DBDir) -> int:
    """Return the major version of the PostgreSQL that made the data.

    Raises:
        Corrupt: The data are missing or damaged.
        DBDirError: The data or the password can't be read.
    """
    data = data_directory(db)
    file = data / "PG_VERSION"
    if not data.is_dir():
        raise Corrupt(f"{shown(data)} is missing: {_REMEDY}")
    try:
        text = file.read_bytes()[:20].decode("ascii", "replace").strip()
    except FileNotFoundError:
        raise Corrupt(f"{shown(file)} is missing: {_REMEDY}") from None
    except OSError as err:
        raise DBDirError(f"{shown(file)} can't be read: {reason(err)}") from None
    if not text.isdigit():
        raise Corrupt(f"{shown(file)} is damaged: {_REMEDY}")
    if not (data / "global" / "pg_control").is_file():
        raise Corrupt(f"{shown(data / 'global' / 'pg_control')} is missing: {_REMEDY}")
    read_password(db)
    return int(text)


def server_programs(db: DBDir) -> Programs:
    """Return the programs that can open the data.

    Raises:
        BackendError: There are none.
        DBDirError: See :func:`check_data`.
    """
    return find_server(db.settings.get("bindir", ""), major=check_data(db))


def _make_directory(db: DBDir, bindir: str, server_user: str) -> None:
    from balsam_postgres.accounts import choose_account
    from balsam_postgres.bootstrap import make_data

    programs = find_server(bindir)
    account = choose_account(db, server_user, programs.path("postgres"))
    data = data_directory(db)
    password = secrets.token_urlsafe(32)
    store_password(db, password)
    try:
        data.mkdir(mode=0o700)
        account.give(data)
    except OSError as err:
        raise DBDirError(f"{shown(data)} can't be made: {reason(err)}") from err
    make_data(programs, data, account, password)
