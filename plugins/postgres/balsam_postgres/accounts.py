"""Which account PostgreSQL's programs run as: they refuse to run as root.

An ordinary user runs them as himself. Root has two ways, and the owner of the data directory tells which was taken:

* A user namespace: outside of it the process is root, without any of root's capabilities; inside it is an ordinary
  user. The files stay root's, under whatever folders.
* An account of its own, which must reach the data, so the DB directory gets the mode 0711 (what is in it stays closed).
  Taken when the user asks for it, and where the system allows no user namespaces and there is the account ``postgres``.

No account is ever made, and no folder above the DB directory is ever opened.
"""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

from balsam_core.plugin import BackendError, InvalidInput, ServerAccount, shown

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import DBDir

_USUAL = "postgres"
_TIMEOUT = 20.0  # seconds
_REMEDY = "name an account with --option server_user=NAME or BALSAM_SERVER_USER, or run balsam as an ordinary user"


def choose_account(db: DBDir, option: str, program: str) -> ServerAccount:
    """Return the account for new data, which must be able to start ``program``; ``option`` names one, or is empty.

    Raises:
        InvalidInput: There is no such account, or it can't be used.
        DBDirError: The account can't reach the DB directory, or not start the program.
        BackendError: This is root, and there is no way to run the server.
    """
    account = ServerAccount.chosen(option)
    if os.geteuid() != 0:
        return account
    if account.user is None:
        if option or os.environ.get("BALSAM_SERVER_USER"):
            raise InvalidInput(f"PostgreSQL refuses to run as root: {_REMEDY}")
        if (namespace := _namespace_account()) is not None:
            return namespace
        try:
            account = ServerAccount.chosen(_USUAL)
        except InvalidInput:
            raise BackendError(
                f"PostgreSQL refuses to run as root, this system allows no user namespaces, and it has no account "
                f"{_USUAL}: {_REMEDY}"
            ) from None
    account.admit(db.path, program, db.path)
    return account


def account_of(data: Path) -> ServerAccount:
    """Return the account that runs a server on existing data: that of the folder's owner.

    Raises:
        DBDirError: The data belong to somebody else.
        BackendError: They belong to root, and this system has no way to run the server.
    """
    account = ServerAccount.owner_of(data)
    if os.geteuid() != 0 or account.user is not None:
        return account
    if (namespace := _namespace_account()) is not None:
        return namespace
    raise BackendError(
        f"PostgreSQL refuses to run as root, which owns {shown(data)}, and this system allows no user namespaces: give "
        f"that folder to an account with chown -R, and the DB directory the mode 0711"
    )


def _namespace_account() -> ServerAccount | None:
    """Return how to be an ordinary user in a namespace, None where the system has no such thing.

    initdb wants the user to have a name, so it is one from the list of accounts.
    """
    users = {one.pw_name: one.pw_uid for one in pwd.getpwall() if one.pw_uid != 0}
    if not users:
        return None
    uid = users.get("nobody", next(iter(users.values())))
    account = ServerAccount(prefix=("unshare", "-U", f"--map-user={uid}", f"--map-group={uid}"))
    try:
        return account if account.run(["true"], timeout=_TIMEOUT).returncode == 0 else None
    except BackendError:
        return None
