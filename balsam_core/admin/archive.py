"""The file that ``balsam backup`` writes: a plain tar file of two members, which any ``tar`` can list and unpack.

* ``balsam-backup.json``: what it is, see :class:`Manifest`;
* ``database``: what the backend's plugin wrote.

It is read strictly, block by block and never by name: a file of another making can't lead anywhere.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import time
from typing import TYPE_CHECKING, Annotated, BinaryIO

import msgspec

from balsam_core.errors import Corrupt, SchemaMismatch

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMAT", "Manifest", "digest", "extract", "read_manifest", "write_archive"]

FORMAT = 1  # of the manifest and the members; a program refuses a newer one

_MANIFEST = "balsam-backup.json"
_DATABASE = "database"
_BLOCK = 512  # bytes, of a tar file
_CHUNK = 1024 * 1024  # bytes
_LARGEST_MANIFEST = 64 * 1024  # bytes


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is.

    Attributes:
        format: Version of the file's layout.
        db_type: Name of the backend.
        db_id: The DB's id.
        schema: Version of its tables.
        created: When it was made, ISO 8601 in UTC.
        balsam: Version of the program that made it.
        plugin: Distribution and version of the plugin that did.
        size: Size of the plugin's file, bytes.
        sha256: Its SHA-256 in hex.
    """

    format: int
    db_type: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]*\Z", max_length=100)]
    db_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    schema: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{4}\Z")]
    created: str
    balsam: str
    plugin: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str


class _Format(msgspec.Struct):
    format: int


def digest(file: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_archive(target: Path, manifest: Manifest, database: Path) -> None:
    """Write a backup, 0600, and force it to disk.

    Args:
        target: The file to make.
        manifest: What it is.
        database: The plugin's file.

    Raises:
        OSError: It can't be written.
    """
    head = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(target, flags, 0o600), "wb") as out, database.open("rb") as content:  # noqa: PTH123  (a descriptor)
        out.write(_header(_MANIFEST, len(head)) + head + _padding(len(head)))
        out.write(_header(_DATABASE, manifest.size))
        written = 0
        while chunk := content.read(_CHUNK):
            out.write(chunk)
            written += len(chunk)
        if written != manifest.size:
            raise OSError(None, f"the file of {manifest.plugin} has changed meanwhile", str(database))
        out.write(_padding(written) + bytes(2 * _BLOCK))
        out.flush()
        os.fsync(out.fileno())


def read_manifest(stream: BinaryIO, name: str) -> Manifest:
    """Read the beginning of a backup and return what it is.

    Args:
        stream: The file, at its beginning.
        name: Its name, for errors.

    Raises:
        Corrupt: It is no backup, or damaged.
        SchemaMismatch: A newer Balsam made it.
    """
    size = _member(stream, name, _MANIFEST)
    if size > _LARGEST_MANIFEST:
        raise Corrupt(f"{name} is no backup of Balsam's: its first member is too large")
    text = _exactly(stream, size, name)
    _exactly(stream, -size % _BLOCK, name)
    try:
        found = msgspec.json.decode(text, type=_Format).format
        if found > FORMAT:
            raise SchemaMismatch(f"{name} was made by a newer Balsam: upgrade with pip install -U balsam-core")
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError as err:
        raise Corrupt(f"{name} is damaged or no backup of Balsam's: {_MANIFEST} can't be understood ({err})") from None


def extract(stream: BinaryIO, name: str, manifest: Manifest, target: Path) -> None:
    """Copy the plugin's file out of a backup, and check it.

    Args:
        stream: The file, behind what :func:`read_manifest` has read.
        name: Its name, for errors.
        manifest: What that said.
        target: The file to make.

    Raises:
        Corrupt: The backup is damaged.
        OSError: It can't be read, or the file can't be written.
    """
    size = _member(stream, name, _DATABASE)
    if size != manifest.size:
        raise Corrupt(f"{name} is damaged: its database has {size} bytes instead of {manifest.size}")
    found = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(target, flags, 0o600), "wb") as out:  # noqa: PTH123  (a descriptor)
        left = size
        while left:
            chunk = _exactly(stream, min(_CHUNK, left), name)
            left -= len(chunk)
            found.update(chunk)
            out.write(chunk)
    if found.hexdigest() != manifest.sha256:
        raise Corrupt(f"{name} is damaged: its database is not what was written (SHA-256); use another backup")
    if any(_exactly(stream, -size % _BLOCK + 2 * _BLOCK, name)) or stream.read(1):
        raise Corrupt(f"{name} is damaged: something stands behind its end")


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o600
    member.mtime = int(time.time())
    return member.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _member(stream: BinaryIO, name: str, wanted: str) -> int:
    """Read a member's header and return the member's size.

    One header is parsed at a time: :mod:`tarfile` itself follows extensions of the format, and some of them far.
    """
    try:
        found = tarfile.TarInfo.frombuf(_exactly(stream, _BLOCK, name), "utf-8", "surrogateescape")
    except tarfile.HeaderError as err:
        raise Corrupt(f"{name} is no backup of Balsam's, or damaged: {err}") from None
    if found.name != wanted or found.type != tarfile.REGTYPE or found.size < 0:
        raise Corrupt(f"{name} is no backup of Balsam's: it holds {found.name[:60]!r} in place of {wanted}")
    return found.size


def _exactly(stream: BinaryIO, size: int, name: str) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        what = "is cut short: use another backup" if stream.tell() else "is empty: it is no backup of Balsam's"
        raise Corrupt(f"{name} {what}")
    return data
