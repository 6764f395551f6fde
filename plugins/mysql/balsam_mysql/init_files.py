"""What ``balsam init`` makes besides the tables: the server's data in ``mysql/`` of the DB directory."""

from __future__ import annotations

import os
import re
import secrets
import stat
from typing import TYPE_CHECKING

from balsam_core.plugin import (
    Corrupt,
    DBDirError,
    InvalidInput,
    ServerAccount,
    force_to_disk,
    option_choice,
    option_value,
    password_file,
    private_file,
    reason,
    shown,
    store_password,
)
from balsam_mysql.bootstrap import make_data
from balsam_mysql.configuration import MEMORY
from balsam_mysql.keys import make_keys
from balsam_mysql.programs import find_server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from balsam_core.plugin import DBDir
    from balsam_mysql.programs import Programs

_SIZE = re.compile(r"[1-9][0-9]{0,5}[MG]")


def server_home(db: DBDir) -> Path:
    """Return the folder of everything that is the server's: ``data``, ``tmp``, ``tls``."""
    return db.path / "mysql"


def init_files(db: DBDir, options: Mapping[str, str]) -> dict[str, str]:
    """Make the data if the directory is new, else check them; return the settings to store.

    Raises:
        InvalidInput: An option has a wrong value.
        BackendError: The server's programs are missing, don't suit the data, or fail.
        DBDirError: The data can't be made, or are damaged.
        Unavailable: The server that a URL names can't be used.
    """
    if "url" in db.settings or "url" in options:
        from balsam_mysql.adopting import adopt

        return adopt(db, options)
    if "store_password" in options:
        raise InvalidInput("the option store_password is for a DB on somebody else's server: give --url, too")
    durability = option_choice(db, options, "durability", ("full", "relaxed"))
    memory = option_value(db, options, "memory", MEMORY)
    if not _SIZE.fullmatch(memory):
        raise InvalidInput(f"the option memory is {memory!a}; it must be a size like 512M or 2G")
    bindir = option_value(db, options, "bindir")
    bindir = os.path.abspath(bindir) if bindir else ""  # noqa: PTH100
    home = server_home(db)
    wanted = (db.settings["variant"], db.settings["series"]) if "series" in db.settings else None
    exists = wanted is not None or os.path.lexists(home)
    if exists:
        check_data(db)
    account = ServerAccount.owner_of(home) if exists else ServerAccount.chosen(options.get("server_user", ""))
    programs = find_server(bindir, account=account, strict="bindir" in options, wanted=wanted)
    if not exists:
        _make_home(db, programs, account)
    make_keys(db, programs.variant)
    return {
        **({"bindir": bindir} if bindir else {}),
        "durability": durability,
        "memory": memory,
        "series": programs.series,
        "variant": programs.variant,
    }


def check_data(db: DBDir) -> None:
    """Check that the data and the password are there.

    Raises:
        Corrupt: There are no data; the server would make new ones.
        DBDirError: The data or the password can't be read.
    """
    data = server_home(db) / "data"
    try:
        is_whole = stat.S_ISDIR(data.stat().st_mode) and (data / "mysql").is_dir() and (data / "ibdata1").is_file()
    except FileNotFoundError:
        is_whole = False
    except OSError as err:
        raise DBDirError(f"{shown(data)} can't be looked at: {reason(err)}") from None
    if not is_whole:
        raise Corrupt(f"{shown(data)} is missing or holds no data of a server: restore it from a backup")
    private_file(password_file(db))


def server_programs(db: DBDir) -> Programs:
    """Return the server's program for the data of a DB directory.

    Raises:
        BackendError: There is none that suits.
        Corrupt: See :func:`check_data`.
        DBDirError: The same.
    """
    check_data(db)
    # Whoever owns the DB names the folder of the programs, so they are run as that account, also for root.
    account = ServerAccount.owner_of(server_home(db))
    wanted = db.settings.get("variant", ""), db.settings.get("series", "")
    return find_server(db.settings.get("bindir", ""), account=account, wanted=wanted)


def _make_home(db: DBDir, programs: Programs, account: ServerAccount) -> None:
    home = server_home(db)
    password = secrets.token_hex(24)
    try:
        for folder in (home, home / "data", home / "tmp", home / "tls"):
            folder.mkdir(mode=0o700)
            account.give(folder)
        account.admit(db.path, home)
        make_data(programs, home, account, password)
        store_password(db, password)
        force_to_disk(home)
    except OSError as err:
        raise DBDirError(f"{shown(home)} can't be made: {reason(err)}") from err
