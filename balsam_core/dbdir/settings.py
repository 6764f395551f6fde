"""The user's own settings, and which DB a command means.

In this order: ``--db PATH``, ``BALSAM_DB_PATH``, ``default_db_path`` in ``settings.toml``, ``default_balsamdb`` in the
user's data directory. Knows nothing about the inside of a DB directory.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from balsam_core.errors import DBDirError, SettingsError
from balsam_core.system.files import expand, read_regular, reason, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DB_PATH_VARIABLE = "BALSAM_DB_PATH"
_KEYS = {"default_db_path": "the full path of a DB directory", "mpi": "a kind of MPI or a command line"}
_MAX_SETTINGS_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ResolvedPath:
    """The DB directory to use, and what chose it.

    Attributes:
        path: Absolute path; it need not exist.
        source: Which rule chose it. Only a ``default`` DB is created on first use.
    """

    path: Path
    source: Literal["argument", "environment", "settings", "default"]

    @property
    def origin(self) -> str:
        """The source as users know it, e.g. ``BALSAM_DB_PATH``."""
        if self.source == "settings":
            return f"default_db_path in {shown(settings_file())}"
        return {"argument": "--db", "environment": DB_PATH_VARIABLE, "default": "default"}[self.source]


def settings_file() -> Path:
    """Return the path of the user's ``settings.toml``; it need not exist.

    Raises:
        SettingsError: The user has no home directory.
    """
    from platformdirs import user_config_path

    with _home_needed():
        return user_config_path("balsam", appauthor=False) / "settings.toml"


def default_balsamdb() -> Path:
    """Return the path of the DB that is created on first use, in the user's data directory.

    Raises:
        SettingsError: The user has no home directory.
    """
    from platformdirs import user_data_path

    with _home_needed():
        return user_data_path("balsam", appauthor=False) / "default_balsamdb"


@contextlib.contextmanager
def _home_needed() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # of pathlib and platformdirs
        raise SettingsError(
            f"this user has no home directory: set HOME, or name a DB with --db or {DB_PATH_VARIABLE}"
        ) from None


def default_db_path() -> Path | None:
    """Return what ``settings.toml`` says: the DB to use when nothing else names one, None where it names none.

    Raises:
        SettingsError: The file can't be read, is no TOML, or holds an unknown key or a wrong value.
    """
    value = _read_settings().get("default_db_path")
    if value is None:
        return None
    name = shown(settings_file())
    if not value.startswith(("/", "~")):
        raise SettingsError(f"{name}: default_db_path is {value!r}; write the full path of a DB directory")
    try:
        return expand(value)
    except DBDirError as err:
        raise SettingsError(f"{name}: default_db_path: {err}") from None


def mpi_setting() -> str:
    """Return what ``settings.toml`` says of how MPI jobs start; empty for nothing.

    Raises:
        SettingsError: As :func:`default_db_path`.
    """
    return _read_settings().get("mpi", "")


def _read_settings() -> dict[str, str]:
    """Return the content of ``settings.toml``; empty where there is none."""
    import tomllib

    file = settings_file()
    name = shown(file)
    try:
        data = read_regular(file, limit=_MAX_SETTINGS_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as err:
        raise SettingsError(f"{name} can't be read: {reason(err)}; correct it or remove it") from None
    try:
        content = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as err:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        why = " ".join(str(err).split())
        raise SettingsError(f"{name} can't be understood: {why}; correct it or remove it") from None
    if unknown := sorted(content.keys() - set(_KEYS)):
        raise SettingsError(f"{name} has the unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    for key, value in content.items():
        if not isinstance(value, str):
            raise SettingsError(f"{name}: {key} is {value!r}; write {_KEYS[key]} in quotes")
    return content


def resolve_db_path(explicit: str | os.PathLike[str] | None = None) -> ResolvedPath:
    """Return the DB directory to use; ``~`` is expanded, nothing on disk is read but the settings file.

    Args:
        explicit: What the user said with ``--db`` or ``open_db(path)``; None when nothing was said.

    Raises:
        DBDirError: The path can't be one: empty, with a NUL, an unknown user's home.
        SettingsError: The settings file was needed and is wrong.
    """
    if explicit is not None:
        return ResolvedPath(path=expand(explicit), source="argument")
    environment = os.environ.get(DB_PATH_VARIABLE, "")
    if environment.strip():
        return ResolvedPath(path=expand(environment), source="environment")
    if (chosen := default_db_path()) is not None:
        return ResolvedPath(path=chosen, source="settings")
    return ResolvedPath(path=default_balsamdb(), source="default")
