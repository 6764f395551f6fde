"""``balsam init``: options in, settings out; what is on the disk comes from the modules for each kind of DB."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from balsam_core.plugin import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balsam_core.plugin import DBDir

__all__ = ["set_up"]

_CHOICES = {"durability": ("full", "relaxed"), "store_password": ("yes", "no")}


def set_up(db: DBDir, options: Mapping[str, str]) -> dict[str, str]:
    """Make or check what the DB needs outside its tables; return the settings to store.

    Raises:
        InvalidInput: An option has a wrong value; nothing was made.
        DBDirError: The data can't be made, or is damaged.
        BackendError: The programs are missing.
        Unavailable: The adopted server can't be used.
    """
    wanted = {
        **db.settings,
        **{name: text for name, text in options.items() if name not in {"password", "server_user"}},
    }
    for name, choices in _CHOICES.items():
        if wanted.setdefault(name, choices[0]) not in choices:
            raise InvalidInput(f"the option {name} is {wanted[name]!a}; it must be {' or '.join(choices)}")
    url = wanted.get("url", "")
    settings = {"durability": wanted["durability"]}
    if bindir := wanted.get("bindir", ""):
        if not os.path.isabs(os.path.expanduser(bindir)):  # noqa: PTH111, PTH117  (a text to be stored as it is)
            raise InvalidInput(f"the option bindir is {bindir!a}: write the path in full")
        settings["bindir"] = bindir
    if bool(url) != ("url" in db.settings) and db.settings:
        raise InvalidInput(
            "a DB can't change between a server of its own and one that somebody else runs: make another DB with "
            "balsam init, and fill it from a backup"
        )
    if url:
        from balsam_postgres.adopting import adopt

        settings |= {"url": url, "store_password": wanted["store_password"]}
        adopt(db, settings, options.get("password"))
        return settings
    if "store_password" in options:
        raise InvalidInput("the option store_password is for a DB with a URL: the password of its own server is kept")
    _own(db, bindir, options.get("server_user", ""))
    return settings


def _own(db: DBDir, bindir: str, user: str) -> None:
    from balsam_postgres.accounts import choose_account
    from balsam_postgres.bootstrap import check_data, data_directory, make_data
    from balsam_postgres.programs import find_server

    if db.settings or os.path.lexists(data_directory(db)):
        if user:
            raise InvalidInput("the account of a server is chosen when the DB is made: leave server_user out")
        find_server(bindir, major=check_data(db))
        return
    programs = find_server(bindir)
    make_data(db, programs, choose_account(db, user, programs.path("postgres")))
