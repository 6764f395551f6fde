"""The file that ``balsam backup`` writes: a plain tar file of two members, which any ``tar`` can list and unpack.

* ``balsam-backup.json``: what it is, see :class:`Manifest`;
* ``database``: what the backend's plugin wrote.

A file of unknown origin must not lead to other files or fill the memory. So nothing is extracted by name, each member
must be the expected one, and tarfile may read only as many bytes as that needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tarfile
import time
from typing import IO, TYPE_CHECKING, Annotated, BinaryIO

import msgspec

from balsam_core.errors import Corrupt, SchemaMismatch
from balsam_core.plugin_types import PLUGIN_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT = 1  # of the manifest and the members; a program refuses a newer one

_MANIFEST = "balsam-backup.json"
_DATABASE = "database"
_CHUNK = 1024 * 1024  # bytes
_LARGEST_MANIFEST = 64 * 1024  # bytes
_END = 2 * tarfile.BLOCKSIZE  # bytes, all zero
_GARBAGE_ERRORS = (tarfile.TarError, msgspec.MsgspecError, ValueError, LookupError, ArithmeticError, RecursionError)


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
    db_type: Annotated[str, msgspec.Meta(pattern=rf"^{PLUGIN_NAME.pattern}\Z", max_length=100)]
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
    """Write a backup, 0600, of the plugin's file ``database``, and force it to disk.

    Raises:
        OSError: It can't be written.
    """
    head = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
    with _new_file(target) as out, database.open("rb") as content:
        with tarfile.TarFile(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, copybufsize=_CHUNK) as tar:
            for name, size, source in ((_MANIFEST, len(head), io.BytesIO(head)), (_DATABASE, manifest.size, content)):
                member = tarfile.TarInfo(name)
                member.size, member.mode, member.mtime = size, 0o600, int(time.time())
                tar.addfile(member, source)
        out.flush()
        os.fsync(out.fileno())


class Backup:
    """A backup that is being read.

    Args:
        stream: The file, at its beginning.
        name: Its name, for errors.

    Attributes:
        manifest: What it is.

    Raises:
        Corrupt: It is no backup, or damaged.
        SchemaMismatch: A newer Balsam made it.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._file = _BoundedFile(stream)
        self._name = name
        with self._as_corrupt():
            self._file.allowed = tarfile.BLOCKSIZE + _LARGEST_MANIFEST
            self._tar = tarfile.TarFile(fileobj=self._file)  # type: ignore[arg-type]
            text = self._next_member(_MANIFEST).read()
            if msgspec.json.decode(text, type=_Format).format > FORMAT:
                raise SchemaMismatch(f"{name} was made by a newer Balsam: upgrade with pip install -U balsam-core")
            self.manifest = msgspec.json.decode(text, type=Manifest)

    def extract(self, target: Path) -> None:
        """Copy the plugin's file out of the backup, and check it.

        Raises:
            Corrupt: The backup is damaged.
            OSError: It can't be read, or the file can't be written.
        """
        with self._as_corrupt():
            self._file.allowed = 1 + tarfile.BLOCKSIZE  # tarfile reads the last byte before a header, too
            content = self._next_member(_DATABASE)
            self._file.allowed = self.manifest.size
            with _new_file(target) as out:
                shutil.copyfileobj(content, out, _CHUNK)
            if (target.stat().st_size, digest(target)) != (self.manifest.size, self.manifest.sha256):
                raise tarfile.ReadError("the database is not what was written (SHA-256)")
            # Then only the end: other programs pad it to a whole record.
            padding = -self._file.tell() % tarfile.BLOCKSIZE
            self._file.allowed = 2 * tarfile.RECORDSIZE
            rest = self._file.read(2 * tarfile.RECORDSIZE)
            end = len(rest) - padding
            if any(rest) or end % tarfile.BLOCKSIZE or not _END <= end < _END + tarfile.RECORDSIZE:
                raise tarfile.ReadError("it is cut short, or something follows its end")

    def _next_member(self, name: str) -> IO[bytes]:
        member = self._tar.next()
        if member is None:
            raise tarfile.ReadError(f"it has no {name}")
        content = self._tar.extractfile(member) if member.type == tarfile.REGTYPE and member.size >= 0 else None
        if content is None or member.name != name or member.pax_headers:
            raise tarfile.ReadError(f"it holds {member.name[:60]!r} in place of {name}")
        return content

    @contextlib.contextmanager
    def _as_corrupt(self) -> Iterator[None]:
        try:
            yield
        except _GARBAGE_ERRORS as err:
            why = " ".join(str(err).split())
            raise Corrupt(f"{self._name} is damaged or no backup of Balsam's: {why}; use another backup") from None


class _BoundedFile:
    """A file of which only so many more bytes may be read: a header can claim any size."""

    def __init__(self, stream: BinaryIO) -> None:
        self.allowed = 0  # bytes
        self._read = stream.read
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.allowed:
            raise tarfile.ReadError("a header or a member is too large")
        self.allowed -= size
        return self._read(size)


def _new_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
