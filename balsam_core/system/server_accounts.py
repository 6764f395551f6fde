"""The account that a database's server and its programs run as, and running such a program to its end.

The owner of the data decides. What root does for another account's server, it does as that account: the owner of a
folder could otherwise lead root to other files by a symbolic link, or have root run a program of his own.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from balsam_core.errors import BackendError, DBDirError, InvalidInput
from balsam_core.system.files import atomic_write, reason, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

USER_VARIABLE = "BALSAM_SERVER_USER"
_PASSABLE = 0o711  # others may reach what they know the name of, and are allowed to open
_REPLACE = 'PATH=$PATH:/usr/bin:/bin; cat > "$0.new" && mv -f "$0.new" "$0"'
_TELLING = ("error", "fatal", "could not")  # words of the lines that say why a program failed
_MOST_LINES = 3
_LONGEST_REASON = 400  # characters


@dataclass(frozen=True, kw_only=True)
class ServerAccount:
    """The account that a database's server and its programs run as.

    Attributes:
        user: Name of the account that root changes to, as for ``ServerPlan.user``; None for this process's own account.
        prefix: Program and arguments to put before each command, e.g. ``("unshare", "-U")``.
    """

    user: str | None = None
    prefix: tuple[str, ...] = ()

    @classmethod
    def chosen(cls, option: str) -> Self:
        """Return the account for the server of a new DB; without a choice it is this process's own.

        Args:
            option: The name that the user gave; if empty, root may have named one in ``BALSAM_SERVER_USER``.

        Raises:
            InvalidInput: There is no such account, or only root could use it.
        """
        is_root = os.geteuid() == 0
        name = option or (os.environ.get(USER_VARIABLE, "") if is_root else "")
        if not name:
            return cls()
        try:
            uid = pwd.getpwnam(name).pw_uid
        except (KeyError, ValueError):
            raise InvalidInput(f"there is no account {name!a} that the server could run as") from None
        if not is_root and uid != os.geteuid():
            raise InvalidInput(f"only root can start a server as {name}: leave the option server_user out")
        return cls(user=None if uid == os.geteuid() else name)

    @classmethod
    def owner_of(cls, folder: Path) -> Self:
        """Return the account for a server on existing data: the owner of their folder.

        Args:
            folder: The folder, in the DB directory. If that is not root's, both must have one owner: a link could
                lead to the data of somebody else.

        Raises:
            DBDirError: This process can run no server on these data.
        """
        here = os.geteuid()
        try:
            owner, owner_above = folder.stat().st_uid, folder.parent.stat().st_uid
        except OSError as err:
            raise DBDirError(f"{shown(folder)} can't be looked at: {reason(err)}") from None
        name = _name(owner)
        if here == 0 != owner_above != owner:
            above = _name(owner_above) or owner_above
            raise DBDirError(
                f"{shown(folder)} belongs to {name or owner}, and its DB directory to {above}: let one own both"
            )
        if here not in {0, owner}:
            raise DBDirError(f"{shown(folder)} belongs to {name or owner}: only that user, or root, can run its server")
        if name is None and owner != here:
            raise DBDirError(f"{shown(folder)} belongs to the user {owner}, who has no account on this machine")
        return cls(user=None if owner == here else name)

    @property
    def popen_arguments(self) -> dict[str, Any]:
        """The arguments of ``subprocess`` that start a program as this account."""
        if self.user is None:
            return {}
        entry = pwd.getpwnam(self.user)
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: bytes | BinaryIO = b"",
        stdout: BinaryIO | None = None,
        env: Mapping[str, str | bytes] | None = None,
        unset: tuple[str, ...] = (),
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end, in the folder ``/``; the files that it makes are private, its messages in English.

        Args:
            argv: Program and arguments. Never a secret: other users can see them.
            stdin: What it reads, or a file to read from.
            stdout: A file to write to; by default the output is in the result, as what it writes to stderr always is.
            env: Variables to set; only this account and root can see them.
            unset: What the names of variables begin with that it must not inherit, e.g. ``("PG",)``.
            timeout: Seconds that it may take.

        Raises:
            BackendError: It can't be started, or takes longer.
        """
        content = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
        try:
            return subprocess.run(
                [*self.prefix, *argv],
                stdout=stdout or subprocess.PIPE,
                stderr=subprocess.PIPE,
                check=False,
                cwd="/",
                env={**environment_without(unset), "LC_ALL": "C", **(env or {})},
                umask=0o077,
                timeout=timeout,
                **content,
                **self.popen_arguments,
            )
        except OSError as err:
            raise BackendError(f"{shown(argv[0])} can't be run: {reason(err)}") from err
        except subprocess.TimeoutExpired:
            raise BackendError(f"{shown(argv[0])} has not ended after {timeout:g} s") from None

    def give(self, path: Path) -> None:
        """Make the account the owner of a file or folder.

        Raises:
            OSError: It can't be given.
        """
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)

    def write(self, path: Path, data: bytes) -> None:
        """Write a private file, whole or not at all, as the account.

        Raises:
            DBDirError: It can't be written.
        """
        try:
            if self.user is None:
                atomic_write(path, data)
                return
            done = self.run(["/bin/sh", "-c", _REPLACE, path], stdin=data)
        except OSError as err:
            raise DBDirError(f"{shown(path)} can't be written: {reason(err)}") from None
        if done.returncode != 0:
            raise DBDirError(f"{shown(path)} can't be written as {self.user}: {failure_reason(done.stderr)}")

    def admit(self, directory: Path, *needed: Path | str) -> None:
        """Let the account pass through a directory of this process's; it can't list it.

        Args:
            directory: The directory. No folder above it is changed.
            needed: Folders that the account must be able to enter, and programs that it must be able to run.

        Raises:
            DBDirError: It can't, because a folder above is closed to it.
        """
        if self.user is None:
            return
        directory.chmod(_PASSABLE)
        for path in needed:
            if self.run(["test", "-x", path]).returncode != 0:
                raise DBDirError(
                    f"the account {self.user}, which the server shall run as, can't reach {shown(path)}: use a place "
                    f"whose folders let that account through, or another account"
                )


def environment_without(prefixes: Sequence[str]) -> dict[str, str]:
    """Return this process's environment without the variables whose names begin with one of these."""
    return {name: text for name, text in os.environ.items() if not name.startswith(tuple(prefixes))}


def failure_reason(output: bytes) -> str:
    """Return on one line why a program failed: the first lines of its output that name an error, else the last line."""
    lines = [" ".join(line.split()) for line in output.decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line.lower() for word in _TELLING)]
    return "; ".join((telling or lines[-1:] or ["it said nothing"])[:_MOST_LINES])[:_LONGEST_REASON]


def _name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
