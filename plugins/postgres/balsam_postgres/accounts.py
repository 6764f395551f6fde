"""Which account PostgreSQL's programs run as: they refuse to run as root.

An ordinary user runs them as himself. Root has two ways, and the owner of the data directory says which was taken:

* A user namespace: the process is root outside, without any of root's capabilities, and an ordinary user inside. The
  files stay root's, under whatever folders.
* An account of its own, which must reach the data, so the DB directory gets the mode 0711 (what is in it stays closed).
  Taken when the user asks for it, and where the system allows no user namespaces and there is the account ``postgres``.

No account is ever made, and no folder above the DB directory is ever opened.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from balsam_core.plugin import BackendError, DBDirError, InvalidInput, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from balsam_core.plugin import DBDir

__all__ = ["Account", "account_of", "choose_account"]

_ENV = "BALSAM_SERVER_USER"
_USUAL = "postgres"
_OPEN = 0o711  # others may reach what they know the name of, and are allowed to open
_TIMEOUT = 20.0  # seconds
_REMEDY = f"name an account with --option server_user=NAME or {_ENV}, or run balsam as an ordinary user"


class Account(NamedTuple):
    """How to run PostgreSQL's programs.

    Attributes:
        user: The account to change to, None for none.
        prefix: Program and arguments to put before them.
    """

    user: str | None = None
    prefix: tuple[str, ...] = ()

    def run(
        self, argv: Sequence[str], *, cwd: Path | str = "/", stdin: bytes = b"", timeout: float | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end.

        Raises:
            OSError: It can't be started.
            subprocess.TimeoutExpired: It takes longer.
        """
        entry = None if self.user is None else pwd.getpwnam(self.user)
        return subprocess.run(
            [*self.prefix, *argv],
            input=stdin,
            capture_output=True,
            check=False,
            cwd=cwd,
            timeout=timeout,
            umask=0o077,
            env={name: text for name, text in os.environ.items() if not name.startswith("PG")},
            user=None if entry is None else entry.pw_uid,
            group=None if entry is None else entry.pw_gid,
            extra_groups=None if entry is None else os.getgrouplist(entry.pw_name, entry.pw_gid),
        )

    def give(self, path: Path) -> None:
        """Make it the owner of a file or folder."""
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def choose_account(db: DBDir, option: str, program: str) -> Account:
    """Return the account for new data.

    Args:
        db: The DB directory.
        option: The account that the user names, empty for none.
        program: One of the programs, which the account must be able to start.

    Raises:
        InvalidInput: There is no such account, or it can't be had.
        DBDirError: The account can't reach the DB directory, or not start the program.
        BackendError: This is root, and there is no way to run the server.
    """
    name = option or os.environ.get(_ENV, "")
    if os.geteuid() != 0:
        if option and option != pwd.getpwuid(os.geteuid()).pw_name:
            raise InvalidInput(f"only root can run the server as {option!a}: leave the option server_user out")
        return Account()
    if name:
        if not _exists(name) or pwd.getpwnam(name).pw_uid == 0:
            raise InvalidInput(f"the server can't run as {name!a}, which is no account or root's: {_REMEDY}")
        return _opened(db, name, program)
    if (namespace := _namespace()) is not None:
        return namespace
    if _exists(_USUAL):
        return _opened(db, _USUAL, program)
    raise BackendError(
        f"PostgreSQL refuses to run as root, this system allows no user namespaces, and it has no account {_USUAL}: "
        f"{_REMEDY}"
    )


def account_of(data: Path) -> Account:
    """Return the account that runs a server on existing data: that of the folder's owner.

    Args:
        data: The folder, in the DB directory; where that is not root's, both have one owner.

    Raises:
        DBDirError: The data belongs to somebody else.
        BackendError: It belongs to root, and this system has no way to run the server.
    """
    owner, here = data.stat().st_uid, os.geteuid()
    home = data.parent.stat().st_uid
    if here == 0 != home != owner:  # by a link: what that user says would be done to data that is not his
        raise DBDirError(
            f"{shown(data)} belongs to {_name(owner)}, and its DB directory to {_name(home)}: let one own both"
        )
    if here != 0:
        if owner != here:
            raise DBDirError(f"{shown(data)} belongs to {_name(owner)}: only that user can run its server")
        return Account()
    if owner != 0:
        return Account(user=_name(owner))
    if (namespace := _namespace()) is not None:
        return namespace
    raise BackendError(
        f"PostgreSQL refuses to run as root, which owns {shown(data)}, and this system allows no user namespaces: give "
        f"that folder to an account with chown -R, and the DB directory the mode 0711"
    )


def _opened(db: DBDir, name: str, program: str) -> Account:
    account = Account(user=name)
    db.path.chmod(_OPEN)
    for what, test in ((program, "-x"), (str(db.path), "-x")):
        if account.run(["test", test, what], timeout=_TIMEOUT).returncode != 0:
            raise DBDirError(
                f"the account {name}, which the server shall run as, can't reach {shown(what)}: put it where every "
                f"folder above lets that account through, or {_REMEDY}"
            )
    return account


def _namespace() -> Account | None:
    """Return how to be an ordinary user in a namespace, None where the system has no such thing.

    initdb wants the user to have a name, so it is one from the list of accounts.
    """
    users = {one.pw_name: one.pw_uid for one in pwd.getpwall() if one.pw_uid != 0}
    if not users:
        return None
    uid = users.get("nobody", next(iter(users.values())))
    account = Account(prefix=("unshare", "-U", f"--map-user={uid}", f"--map-group={uid}"))
    try:
        return account if account.run(["true"], timeout=_TIMEOUT).returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except (KeyError, ValueError):
        return False
    return True


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise DBDirError(f"the server's files belong to the user {uid}, who has no account on this machine") from None
