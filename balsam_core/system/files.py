"""Small files that several processes share: read without trust, written whole.

A file that others read is never changed in place: it is written under a temporary name in the same folder, forced to
disk and renamed (rewriting in place gave readers a torn file in 96 % of reads).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from pathlib import Path

from balsam_core.errors import BalsamError, DBDirError

_SERVER = re.compile(  # the address of a database server, in the forms that its clients take
    r"\s*(?:[a-z][a-z0-9+.-]*://"
    r"|(?:jdbc|odbc|postgres|postgresql|mysql|mariadb|sqlserver|oracle)(?:\+\w+)?(?::|%3a)"
    r"|(?://)?[^/\s:@]+:[^/@]+@[^/]"  # a user and a password before a host
    r"|(?:.*[\s;?&])?(?:password|passwd|pwd)\s*="
    r"|(?:.*[\s;?&])?(?:host|hostaddr|server|service|user|dbname|database)\s*=.*[\s;?&]\w+\s*=)",
    re.IGNORECASE | re.DOTALL,
)
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def names_server(text: str) -> bool:
    """Say whether a text is the address of a database server; it may hold a password, so it is not shown."""
    return _SERVER.match(text) is not None


def shown(path: str | os.PathLike[str]) -> str:
    """Return the path as one printable line: quoted and escaped when it holds newlines or undecodable bytes."""
    text = os.fspath(path)
    return text if text.isprintable() and text else repr(text)


def pasted(path: str | os.PathLike[str]) -> str:
    """Return the path as one printable word for a shell, which a user copies from a message."""
    import shlex

    text = os.fspath(path)
    if text.isprintable():
        return shlex.quote(text)
    escaped = (
        f"\\{char}"
        if char in "\\'"
        else char
        if char.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
        for char in text
    )
    return f"$'{''.join(escaped)}'"


def reason(err: Exception) -> str:
    """Return the text of an error in lower case; of an OSError the system's text, without number and path."""
    return (getattr(err, "strerror", None) or str(err) or type(err).__name__).lower()


def describe_error(err: BaseException) -> str:
    """Return why a program ends: an error of ours speaks for itself, one of the system names its file."""
    if isinstance(err, BalsamError):
        return err.message
    if isinstance(err, OSError):
        return f"{shown(err.filename)}: {reason(err)}" if isinstance(err.filename, str) else reason(err)
    return f"unexpected {type(err).__name__}: {err}"


def expand(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path, with ``~`` and ``~user`` expanded; symbolic links stay.

    ``--path=~/x`` reaches us unexpanded: the shell expands a tilde at the start of a word only.

    Raises:
        DBDirError: The path is empty, a URL or the like, holds a NUL, or names an unknown user's home.
    """
    text = os.fspath(path)
    if not text.strip():
        raise DBDirError("the path is empty: name a directory, or leave the option out")
    if "\0" in text:
        raise DBDirError(f"{shown(text)} can't be a path: it holds a NUL character")
    if names_server(text):
        raise DBDirError(
            "the path is a URL or the like: name a directory; a server's database is named by --url, when it is made"
        )
    try:
        # os.path.abspath and not Path.resolve: a link is the user's name for the directory and may be re-pointed.
        return Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100
    except RuntimeError:
        raise DBDirError(f"{shown(text)}: there is no such user's home directory; write the path in full") from None
    except FileNotFoundError:
        raise DBDirError(f"{shown(text)}: the current directory is gone; write the path in full") from None


def read_regular(path: Path, *, limit: int, follow: bool = True) -> bytes:
    """Return the content of a small regular file, never waiting for a pipe or a device.

    Args:
        path: The file.
        limit: Largest size accepted, bytes.
        follow: Whether the file may be a symbolic link.

    Raises:
        OSError: It can't be read, is no regular file, or is larger than ``limit``.
    """
    return read_with_status(path, limit=limit, follow=follow)[0]


def read_with_status(path: Path, *, limit: int, follow: bool = True) -> tuple[bytes, os.stat_result]:
    """Return the content of a small regular file and its status; see :func:`read_regular`."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as err:
        if err.errno == errno.ELOOP and not follow:
            raise OSError(errno.ELOOP, "is a symbolic link") from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file")
    with open(descriptor, "rb") as file:  # noqa: PTH123  (a descriptor, not a path)
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit} bytes")
    return data, status


def is_directory(path: Path) -> bool:
    """Say whether a directory is where a file should be, which a file can't replace; a link to one is none."""
    return path.is_dir() and not path.is_symlink()


def force_to_disk(directory: Path) -> None:
    """Make the names in a directory durable, as far as its file system can do that."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(descriptor)


def give_to_owner(descriptor: int, folder: Path) -> None:
    """Give a new file that root makes in a folder to the folder's owner, who could not read it otherwise."""
    if os.geteuid() == 0 and (owner := folder.stat()).st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def write_new(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Make a file that isn't there yet, and force its content to disk; see :func:`atomic_write`.

    Raises:
        OSError: It can't be written; a part of it may be there.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open(os.open(path, flags, mode), "wb") as file:  # noqa: PTH123  (a descriptor, not a path)
            give_to_owner(file.fileno(), path.parent)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        err.filename = os.fspath(path)  # the system names no file when a write fails
        raise


def atomic_write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace the file so that a reader, or a crash at any moment, finds the old content or the new, whole.

    A symbolic link at ``path`` is replaced, not followed. What root writes into another user's folder is that user's.

    Args:
        path: The file; its directory exists.
        data: The whole new content.
        mode: Permissions of the new file, less the umask.

    Raises:
        OSError: It can't be written; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        write_new(temporary, data, mode=mode)
        temporary.replace(path)
    except BaseException as err:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(err, OSError):
            raise type(err)(err.errno, err.strerror, os.fspath(path)) from None
        raise
    force_to_disk(path.parent)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or a directory, but never over a file. An empty directory that appears meanwhile is replaced.

    Raises:
        FileExistsError: There is something at ``target``.
        OSError: It can't be renamed.
    """
    if source.is_dir():  # a directory can replace nothing but an empty one
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
        source.rename(target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        # A file server that repeats a request whose answer was lost reports the success as a failure.
        if not os.path.samestat(source.lstat(), target.lstat()):
            raise
    except OSError as err:
        if err.errno not in _NO_HARD_LINKS:
            raise
        # Reserve the name, then replace what reserves it: others may find an empty file for a moment.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            source.replace(target)
        except OSError:
            target.unlink()
            raise
        return
    source.unlink(missing_ok=True)
