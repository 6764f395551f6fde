"""``balsam backup`` and ``balsam restore``: a DB's database in one file, and a new DB from such a file.

The plugin's hooks ``balsam_backup`` and ``balsam_restore`` write and read the database's content. Where only the server
may open the files, it is stopped for the time of the backup. A backup holds no
secrets and no working directories of jobs. A restored DB has the id of the DB that was saved: it is that DB, as it was
then.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from balsam_core.admin import archive
from balsam_core.backends import registry
from balsam_core.dbdir.publication import Publication
from balsam_core.errors import BackendError, Conflict, InvalidInput, NotFound, SchemaMismatch
from balsam_core.model.calls import GetInfo
from balsam_core.system.files import expand, force_to_disk, reason, rename_new, shown
from balsam_core.transport.base import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from balsam_core.admin.archive import Manifest
    from balsam_core.backends.registry import Backend
    from balsam_core.dbdir.directory import DBDir

logger = logging.getLogger(__name__)


def backup(db: DBDir, file: str | os.PathLike[str]) -> Manifest:
    """Save a DB's database, as it is at one moment, in a new file, while the DB is in use.

    Where the backend has the capability ``served-only``, a server that runs is stopped for it, and started again.

    Args:
        db: The DB directory.
        file: The file to make, 0600. If this fails, there is no file.

    Returns:
        What it holds.

    Raises:
        BackendError: The DB's backend can't do this, or is broken.
        Conflict: The file exists.
        NotFound: The file's folder does not exist.
        InvalidInput: The file can't be written.
        Unavailable: The database can't be reached, or the server that was stopped could not be started again.
    """
    from balsam_core.version import __version__
    from balsam_core.watchdog import control
    from balsam_core.watchdog.pause import paused

    target = expand(file)
    backend = _backend_with(db.db_type, "balsam_backup", "saved")
    with _as_file_errors(target):
        if os.path.lexists(target):
            raise FileExistsError(target)
    if backend.served_only and control.has_server(db):
        logger.warning("the server of %s is stopped while the backup is made", shown(db.path))
    with (
        _as_file_errors(target),
        TemporaryDirectory(prefix=".balsam-backup-", dir=target.parent, ignore_cleanup_errors=True) as hidden,
        paused(db, always=True) if backend.served_only else nullcontext(),
    ):
        schema = _schema(backend, db)
        published = Publication(db).await_current(time.monotonic() + DEFAULT_TIMEOUT)
        folder = Path(hidden)
        content = folder / "database"
        backend.backup(db, published, content)
        if content.is_symlink() or not content.is_file():
            raise BackendError(f"{backend.provider} is broken: balsam_backup made no file; tell the package's authors")
        manifest = archive.Manifest(
            format=archive.FORMAT,
            db_type=db.db_type,
            db_id=db.id,
            schema=schema,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            balsam=__version__,
            plugin=backend.provider,
            size=content.stat().st_size,
            sha256=archive.digest(content),
        )
        archive.write_archive(folder / "backup", manifest, content)
        rename_new(folder / "backup", target)
        force_to_disk(target.parent)
    return manifest


def restore(
    file: str | os.PathLike[str],
    path: str | os.PathLike[str],
    options: Mapping[str, str] | None = None,
    *,
    password: str | None = None,
) -> tuple[DBDir, Manifest]:
    """Make a new DB from a backup, and bring its tables to this program's schema.

    Args:
        file: From :func:`backup`.
        path: The new directory; it may be empty.
        options: The backend's own options, by name.
        password: As for :func:`~balsam_core.admin.initialise.initialise`.

    Returns:
        The DB, and what the backup says of itself.

    Raises:
        BackendError: The plugin of its db type is not installed, can't do this, or is broken.
        Conflict: There is a DB already.
        Corrupt: The file is damaged or no backup; nothing is left of the new DB.
        DBDirError: The directory can't be made.
        InvalidInput: An option is unknown or has a wrong value, or the file can't be read.
        NotFound: There is no such file.
        SchemaMismatch: A newer Balsam made it.
    """
    from balsam_core.admin.initialise import initialise
    from balsam_core.schema import SCHEMA

    source = expand(file)
    name = shown(source)
    with _as_file_errors(source, "read"):
        stream = open(os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")  # noqa: PTH123, SIM115  (used below)
    with stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise InvalidInput(f"{name} can't be read: is no regular file")
        with _as_file_errors(source, "read"):
            saved = archive.Backup(stream, name)
        manifest = saved.manifest
        if manifest.schema > SCHEMA:
            raise SchemaMismatch(
                f"{name} has schema {manifest.schema}, newer than this program's {SCHEMA}: upgrade with pip install -U "
                f"balsam-core"
            )
        _backend_with(manifest.db_type, "balsam_restore", "restored")
        return initialise(path, manifest.db_type, options, password=password, backup=saved).db, manifest


def _schema(backend: Backend, db: DBDir) -> str:
    """Return the schema of a database that is this DB's, and one that this program can work with."""
    from balsam_core.transport.native import NativeTransport

    with (
        NativeTransport(backend.create_engine(db, "owner"), db=db, is_retryable=lambda _: False)
        if backend.served_only
        else backend.open_transport(db)
    ) as transport:
        return transport.run(GetInfo()).schema


def _backend_with(db_type: str, hook: str, done: str) -> Backend:
    backend = registry.load(db_type)
    if not backend.has(hook):
        raise BackendError(
            f"{backend.identity.title} databases can't be {done} by this command: {backend.provider} lacks the hook "
            f"{hook}; use the database's own tools"
        )
    return backend


@contextmanager
def _as_file_errors(file: Path, verb: str = "written") -> Iterator[None]:
    """Turn errors of the operating system into errors that name the file."""
    name = shown(file)
    try:
        yield
    except FileExistsError:
        raise Conflict(f"{name} exists, and nothing is ever written over: name another file") from None
    except OSError as err:
        if isinstance(err, FileNotFoundError) and not file.parent.is_dir():
            raise NotFound(f"{name} can't be {verb}: there is no folder {shown(file.parent)}") from None
        if isinstance(err, FileNotFoundError) and verb == "read":
            raise NotFound(f"there is no file {name}") from None
        raise InvalidInput(f"{name} can't be {verb}: {reason(err)}") from err
