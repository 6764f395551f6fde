"""``balsam init``: make a DB directory, or refresh one.

Killed at any moment, it leaves a DB, or nothing that hinders a later command. Of many that run at once, one creates the
DB and the others refresh it. Only what was made here is ever removed.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from balsam_core.admin import staging
from balsam_core.backends import registry
from balsam_core.dbdir import address
from balsam_core.dbdir.directory import CONFIG_NAME, DBDir, make_tree, write_config
from balsam_core.errors import AddressError, BackendError, BalsamError, Conflict, DBDirError, InvalidInput, Unavailable
from balsam_core.plugin_types import ServerPolicy
from balsam_core.system.files import expand, force_to_disk, reason, shown
from balsam_core.system.permissions import is_refusal, who_may

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from balsam_core.admin.archive import Backup
    from balsam_core.backends.registry import Backend
    from balsam_core.dbdir.address import Address


@dataclass(frozen=True, kw_only=True)
class InitResult:
    """What ``balsam init`` did.

    Attributes:
        db: The DB directory.
        created: Whether this call created it; if not, it existed and is up to date now.
        migrated: Whether an existing one had an older schema.
        restarted: The new address of its server, which was stopped meanwhile; None when none was.
    """

    db: DBDir
    created: bool
    migrated: bool = False
    restarted: Address | None = None


def initialise(
    path: str | os.PathLike[str],
    db_type: str | None = None,
    options: Mapping[str, str] | None = None,
    *,
    password: str | None = None,
    backup: Backup | None = None,
) -> InitResult:
    """Create the DB directory, or bring an existing one to this program's schema.

    Args:
        path: The directory; it may be missing, with its parents, or empty, or a DB. ``~`` is expanded.
        db_type: Name or alias of a backend; None for ``sqlite``, or for what an existing DB has.
        options: The backend's own options, by name. The option ``url`` names a server that somebody else runs.
        password: For the server that the option ``url`` names, now or earlier; None for none, or the stored one.
        backup: What to fill a new DB with; None for nothing.

    Raises:
        BackendError: There is no such backend, or it is broken.
        Conflict: The DB has another db type, or exists and can't be filled, or can't change to that server.
        DBDirError: The path is a file, holds something else, or can't be written; nothing was changed.
        InvalidInput: An option is unknown or has a wrong value; nothing was changed.
        SchemaMismatch: A newer Balsam made the DB.
        TimedOut: Its server could not be stopped.
        Unavailable: All was done, but its server could not be started again.
    """
    target = expand(path)
    options = options or {}
    with _as_db_dir_errors(target):
        existing = _existing_db(target)
        if existing is None:
            backend = registry.load(db_type or registry.DEFAULT_DB_TYPE)
            checked = _checked_options(backend, options, password)
            with _parents_made(target):
                staging.sweep(target)
                stage = staging.make_stage(target)
                try:
                    with _stage_shown_as(stage, target):
                        db = _build_db(backend, stage, checked, backup)
                    created = staging.publish(stage, target, CONFIG_NAME)
                finally:
                    staging.discard(stage)
            if created:
                return InitResult(db=replace(db, path=target), created=True)
            existing = DBDir.open(target)
        if backup is not None:
            raise Conflict(f"{shown(target)} is a DB already, and a backup is restored as a new one: name another path")
        return _refresh(existing, db_type, options, password)


def ensure_default(path: Path) -> DBDir:
    """Return the user's default DB, at ``path``; it is created if it is missing.

    Raises:
        BackendError: It must be created and balsam-sqlite is not installed, or is broken.
        DBDirError: It can't be created, or is damaged.
    """
    if (path / CONFIG_NAME).exists():
        return DBDir.open(path)
    try:
        return initialise(path, registry.DEFAULT_DB_TYPE).db
    except BackendError as err:
        raise BackendError(f"the default DB {shown(path)} can't be created: {err}; or name a DB with --db") from err


def _existing_db(target: Path) -> DBDir | None:
    """Return the DB at the path, None where one can be made."""
    name = shown(target)
    if not os.path.lexists(target):
        return None
    if not target.is_dir():
        what = "a dangling symbolic link" if target.is_symlink() and not target.exists() else "a file"
        raise DBDirError(f"{name} is {what}: name a new or empty directory")
    staging.finish(target, CONFIG_NAME)
    if os.path.lexists(target / CONFIG_NAME):
        return DBDir.open(target)
    if any(not staging.is_ours(entry) for entry in os.listdir(target)):  # noqa: PTH208  (names, not paths)
        # Another process may have moved its files between the two checks.
        staging.finish(target, CONFIG_NAME)
        if os.path.lexists(target / CONFIG_NAME):
            return DBDir.open(target)
        raise DBDirError(f"{name} is not empty and no Balsam DB: name a new or empty directory")
    return None


def _checked_options(backend: Backend, options: Mapping[str, str], password: str | None) -> dict[str, str]:
    """Return the options for the backend, with the password."""
    known = backend.identity.options
    for option in options:
        if option not in known:
            words = ", ".join(sorted(known)) or "none"
            raise InvalidInput(f"{backend.identity.title} has no option {option!a}; it has: {words}")
    if _has_password(options.get("url", "")):
        raise InvalidInput(
            "the URL holds a password, which other users of this machine could see: leave it out, and give it by "
            "--password-file, by the variable BALSAM_DB_PASSWORD, or when you are asked"
        )
    return {**options, "password": password} if password is not None and "url" in known else dict(options)


def _has_password(url: str) -> bool:
    from urllib.parse import urlsplit

    try:
        return urlsplit(url).password is not None
    except ValueError:  # the backend says what is wrong with it
        return False


def _build_db(backend: Backend, stage: Path, options: Mapping[str, str], backup: Backup | None) -> DBDir:
    """Make everything in the stage; the file that makes it a DB comes last."""
    make_tree(stage)
    db = DBDir(path=stage, db_type=backend.identity.name, id=backup.manifest.db_id if backup else uuid4().hex)
    source = stage / ".backup"
    if backup:
        backup.extract(source)
    db = replace(db, settings=backend.init_db(db, options))
    address.withdraw(db)
    _upgrade_tables(backend, db, new=backup is None, source=source if backup else None)
    source.unlink(missing_ok=True)
    write_config(db)
    return db


def _refresh(db: DBDir, db_type: str | None, options: Mapping[str, str], password: str | None) -> InitResult:
    if db_type is not None and registry.canonical(db_type) != db.db_type:
        name = shown(db.path)
        raise Conflict(f"{name} is a DB of type {db.db_type}, not {db_type}: leave the type out, or name another path")
    backend = registry.load(db.db_type)
    options = _checked_options(backend, options, password)
    policy = backend.server_policy(db)
    if "url" in options and policy is not ServerPolicy.NONE:
        raise Conflict(
            f"{shown(db.path)} can't change between a server of its own and one that somebody else runs: make another "
            f"DB with balsam init, and fill it from a backup"
        )
    required = policy is ServerPolicy.REQUIRED
    if required and not options and os.path.lexists(db.address_file):
        published = None
        with contextlib.suppress(AddressError):  # then it is written again
            published = address.find(db)
        if published and published.state == "running" and _is_current(backend, db):
            return _bring_up_to_date(backend, db, options, published)
    from balsam_core.watchdog.pause import paused

    with paused(db, always=required) as pause:
        result = _bring_up_to_date(backend, db, options, None)
    return replace(result, restarted=pause.restarted)


def _bring_up_to_date(backend: Backend, db: DBDir, options: Mapping[str, str], published: Address | None) -> InitResult:
    refreshed = replace(db, settings=backend.init_db(db, options))
    make_tree(db.path)
    if not os.path.lexists(db.address_file):
        address.withdraw(db)
    migrated = _upgrade_tables(backend, refreshed, published=published)
    if dict(db.settings) != refreshed.settings:
        write_config(refreshed)
    staging.sweep(db.path)
    return InitResult(db=refreshed, created=False, migrated=migrated)


def _is_current(backend: Backend, db: DBDir) -> bool:
    """Say whether the tables need no change, so that the server may go on; False where it doesn't answer."""
    from sqlalchemy.exc import SQLAlchemyError

    from balsam_core.schema.migrate import pending

    engine = backend.create_engine(db, "owner")
    try:
        return not pending(engine)
    except (SQLAlchemyError, Unavailable):
        return False
    finally:
        engine.dispose()


def _upgrade_tables(
    backend: Backend, db: DBDir, *, published: Address | None = None, new: bool = False, source: Path | None = None
) -> bool:
    """Make or change the tables, and say whether that was needed.

    Where a server is needed and none is published, one is run for that.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from balsam_core.schema.migrate import upgrade
    from balsam_core.watchdog.temporary import private_server

    with contextlib.ExitStack() as stack:
        if published is None and backend.server_policy(db) is ServerPolicy.REQUIRED:
            published = stack.enter_context(private_server(db, backend))
        if source is not None:
            backend.restore(db, published, source)
        engine = backend.create_engine(db, "owner")
        stack.callback(engine.dispose)
        try:
            return upgrade(engine, db_id=db.id, new=new, take_over=new)
        except SQLAlchemyError as err:
            text = " ".join(str(getattr(err, "orig", None) or err).split())
            raise DBDirError(f"the tables of {shown(db.path)} can't be made or changed: {text}") from err
        except (BalsamError, OSError):
            raise
        except Exception as err:  # from the function of the plugin that connects
            raise BackendError(backend.failure_message("connecting", err)) from err


@contextlib.contextmanager
def _parents_made(target: Path) -> Iterator[None]:
    """Make the missing parents of a path; if the body fails, remove those of them that are still empty."""
    made: list[Path] = []
    try:
        for parent in reversed(target.parents):
            if not parent.is_dir():
                with contextlib.suppress(FileExistsError):
                    parent.mkdir()
                    made.append(parent)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for parent in reversed(made):
                parent.rmdir()
        raise
    for parent in made:
        force_to_disk(parent.parent)


@contextlib.contextmanager
def _stage_shown_as(stage: Path, target: Path) -> Iterator[None]:
    """Let errors name the directory that the user wants, not the hidden one in which it is made."""

    def renamed(text: str) -> str:
        text = text.replace(os.fspath(stage), os.fspath(target))
        return text.replace(repr(str(stage))[1:-1], repr(str(target))[1:-1])

    try:
        yield
    except BalsamError as err:
        if (text := renamed(str(err))) == str(err):
            raise
        raise type(err)(text) from err
    except OSError as err:
        if isinstance(err.filename, str):
            err.filename = renamed(err.filename)
        raise


@contextlib.contextmanager
def _as_db_dir_errors(target: Path) -> Iterator[None]:
    """Turn errors of the operating system into errors that name the path."""
    try:
        yield
    except OSError as err:
        file = f" ({shown(err.filename)})" if isinstance(err.filename, str) else ""
        remedy = f"; {who_may(Path(err.filename or target))}" if is_refusal(err) else ""
        if isinstance(err, IsADirectoryError):
            remedy = "; move it away"
        raise DBDirError(f"{shown(target)} can't be made a DB: {reason(err)}{file}{remedy}") from err
