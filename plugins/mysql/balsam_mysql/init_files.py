"""The server's data in ``mysql/`` of a DB directory: made aside, with their only account, and renamed.

MariaDB's own script for this can't take every path and leaves accounts of an administrator. Here its SQL files go
straight to the server in its bootstrap mode, which reads statements and never listens, followed by ours. No account
of an administrator is left: there is no socket, either, so nobody could use it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from typing import TYPE_CHECKING

from balsam_core.plugin import (
    Corrupt,
    DBDirError,
    InvalidInput,
    force_to_disk,
    private_file,
    shown,
)
from balsam_mysql.accounts import owner_of, wanted_owner
from balsam_mysql.bootstrap import make_data
from balsam_mysql.configuration import MEMORY
from balsam_mysql.keys import make_keys, password_file, write_password
from balsam_mysql.programs import find

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from balsam_core.plugin import DBDir
    from balsam_mysql.accounts import Owner
    from balsam_mysql.programs import Programs

__all__ = ["DURABILITIES", "check_durability", "data_home", "init_files", "server_programs"]

DURABILITIES = ("full", "relaxed")
_SIZE = re.compile(r"[1-9][0-9]{0,5}[MG]")
_ONLY_WITH_URL = ("store_password",)


def data_home(db: DBDir) -> Path:
    """Return the folder of everything that is the server's: ``data``, ``tmp``, ``tls``."""
    return db.path / "mysql"


def init_files(db: DBDir, options: Mapping[str, str]) -> dict[str, str]:
    """Make the data if the directory is new, check them if not; return the settings to store.

    Raises:
        InvalidInput: An option has a wrong value.
        BackendError: The server's programs are missing, don't suit the data, or fail.
        DBDirError: The data can't be made, or are damaged.
    """
    for name in _ONLY_WITH_URL:
        if name in options:
            raise InvalidInput(f"the option {name} is for a DB on somebody else's server: give --url, too")
    durability = check_durability(options.get("durability", db.settings.get("durability", "full")))
    memory = options.get("memory", db.settings.get("memory", MEMORY))
    if not _SIZE.fullmatch(memory):
        raise InvalidInput(f"the option memory is {memory!a}; it must be a size like 512M or 2G")
    bindir = options.get("bindir", db.settings.get("bindir", ""))
    bindir = os.path.abspath(bindir) if bindir else ""  # noqa: PTH100
    home = data_home(db)
    known = (db.settings["variant"], db.settings["series"]) if "series" in db.settings else None
    exists = known is not None or os.path.lexists(home)
    if exists:
        _check(db)
    owner = owner_of(home) if exists else wanted_owner(options.get("server_user", ""))
    programs = find(bindir, owner=owner, strict="bindir" in options, wanted=known)
    if not exists:
        _make(db, programs, owner)
    make_keys(db, programs.variant)
    return {
        **({"bindir": bindir} if bindir else {}),
        "durability": durability,
        "memory": memory,
        "series": programs.series,
        "variant": programs.variant,
    }


def check_durability(word: str) -> str:
    """Return the option's value.

    Raises:
        InvalidInput: There is no such value.
    """
    if word not in DURABILITIES:
        raise InvalidInput(f"the option durability is {word!r}; it must be one of {', '.join(DURABILITIES)}")
    return word


def server_programs(db: DBDir) -> Programs:
    """Return the server's program for the data of a DB directory.

    Raises:
        BackendError: There is none that suits.
        Corrupt: There are no data, and the server would begin new ones.
        DBDirError: The data or the password can't be read.
    """
    _check(db)
    settings = db.settings
    wanted = settings.get("variant", ""), settings.get("series", "")
    # A DB's owner names the folder, and so what root would run.
    return find(settings.get("bindir", ""), owner=owner_of(data_home(db)), wanted=wanted)


def _check(db: DBDir) -> None:
    data = data_home(db) / "data"
    try:
        whole = stat.S_ISDIR(data.stat().st_mode) and (data / "mysql").is_dir() and (data / "ibdata1").is_file()
    except OSError as err:
        if not isinstance(err, FileNotFoundError):
            raise DBDirError(f"{shown(data)} can't be looked at: {err.strerror}") from None
        whole = False
    if not whole:
        raise Corrupt(f"{shown(data)} is missing or holds no data of a server: restore it from a backup")
    private_file(password_file(db))


def _make(db: DBDir, programs: Programs, owner: Owner) -> None:
    """Make the data under another name, then give them their own."""
    stage = db.path / f".mysql.{os.getpid()}.{os.urandom(4).hex()}"
    password = secrets.token_hex(24)
    try:
        for folder in (stage, stage / "data", stage / "tmp", stage / "tls"):
            folder.mkdir(mode=0o700)
            owner.give(folder)
        owner.open_way(db.path, stage)
        make_data(programs, stage, owner, password)
        write_password(db, password)  # first: without it the data are of no use
        force_to_disk(stage)
        stage.rename(data_home(db))
        force_to_disk(db.path)
    except OSError as err:
        raise DBDirError(f"{shown(data_home(db))} can't be made: {err.strerror or err}") from err
    finally:
        shutil.rmtree(stage, ignore_errors=True)
