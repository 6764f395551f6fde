"""Whose the server's data are, and as whom it runs.

The owner of the data decides at each start. MariaDB and MySQL run as root only if told so, which is what root's own
data need: below a private directory of root's no other account could reach them.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balsam_core.plugin import BackendError, DBDirError, InvalidInput, shown, write_private

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["USER_VARIABLE", "Owner", "owner_of", "wanted_owner"]

USER_VARIABLE = "BALSAM_SERVER_USER"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The account that the server's data belong to.

    Attributes:
        name: Its name.
        uid: Its number.
        gid: Its group.
    """

    name: str
    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        """Whether this process is root and the account another one."""
        return os.geteuid() == 0 != self.uid

    @property
    def options(self) -> list[str]:
        """What the server's program must be told to run as this account, once it does."""
        return ["--user=root"] if self.uid == 0 else []

    @property
    def process(self) -> dict[str, Any]:
        """Arguments of ``subprocess`` to run a program as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.is_other else {}

    def write(self, path: Path, data: bytes) -> None:
        """Write a private file into the account's folder, as that account, which could lead root to another place.

        Raises:
            DBDirError: It can't be written.
        """
        if not self.is_other:
            write_private(path, data)
            return
        argv: list[str | Path] = ["tee", path]
        try:
            subprocess.run(argv, input=data, capture_output=True, check=True, cwd="/", umask=0o077, **self.process)
        except (OSError, subprocess.CalledProcessError):
            raise DBDirError(f"{shown(path)} can't be written as {self.name}: see whose it is, and the disk") from None

    def give(self, path: Path) -> None:
        """Give a file to the account."""
        if self.is_other:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def open_way(self, directory: Path, inside: Path) -> None:
        """Let the account pass through a directory of ours, which it can't list.

        Args:
            directory: The directory. Nothing above it is changed.
            inside: What the account must reach.

        Raises:
            DBDirError: It can't: one of the folders above is closed to it.
        """
        if not self.is_other:
            return
        directory.chmod(0o711)
        done = subprocess.run(["test", "-w", inside], check=False, cwd="/", **self.process)
        if done.returncode:
            raise DBDirError(
                f"the account {self.name} can't reach {shown(directory.parent)}, because that or a folder above it is "
                f"closed to it: use a place that others may pass through, or no other account"
            )


def wanted_owner(name: str) -> Owner:
    """Return the account for new data: the one that is named, by argument or variable, else this process's.

    Raises:
        InvalidInput: There is no such account, or only root could use it.
    """
    name = name or (os.environ.get(USER_VARIABLE, "") if os.geteuid() == 0 else "")
    if not name:
        return Owner(name=_name(os.geteuid()) or "", uid=os.geteuid(), gid=os.getegid())
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise InvalidInput(f"there is no account {name!a} that the server could run as") from None
    if os.geteuid() not in {0, account.pw_uid}:
        raise InvalidInput(f"only root can start a server as {name}: leave the option server_user out")
    return Owner(name=name, uid=account.pw_uid, gid=account.pw_gid)


def owner_of(home: Path) -> Owner:
    """Return whose existing data are, for the server to be started by this process.

    Raises:
        BackendError: No server can run as that account.
        DBDirError: They belong to another user, or can't be looked at.
    """
    is_root = os.geteuid() == 0
    try:
        status = home.stat(follow_symlinks=not is_root)
        above = home.parent.stat().st_uid
    except OSError as err:
        raise DBDirError(f"{shown(home)} can't be looked at: {err.strerror}") from None
    name = _name(status.st_uid)
    if os.geteuid() not in {0, status.st_uid}:
        raise DBDirError(f"{shown(home)} belongs to {name or status.st_uid}, who alone, or root, can start its server")
    # Who can write here could lead root to data of another's, and have any program run as that one.
    if is_root and (not stat.S_ISDIR(status.st_mode) or above not in {0, status.st_uid}):
        raise DBDirError(f"{shown(home)} is a link, or not its DB's owner's: root doesn't serve it")
    if name is None and is_root:
        raise BackendError(f"{shown(home)} belongs to user {status.st_uid}, who has no account here to run a server as")
    return Owner(name=name or "", uid=status.st_uid, gid=status.st_gid)


def _name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
