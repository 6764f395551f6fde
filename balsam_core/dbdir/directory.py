"""The DB directory: which files it has, and ``balsam.toml``, the file that makes a directory a Balsam DB.

Knows nothing about the database inside, which the backend manages.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from balsam_core.errors import DBDirError, InvalidInput, SchemaMismatch
from balsam_core.plugin_types import PLUGIN_NAME
from balsam_core.system.files import atomic_write, expand, pasted, read_regular, reason, shown
from balsam_core.system.permissions import permission_error
from balsam_core.system.shortages import shortage

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = 1  # layout of the DB directory; a program refuses a newer one
CONFIG_NAME = "balsam.toml"
_ID = re.compile(r"[0-9a-f]{32}")
_MAX_CONFIG_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class DBDir:
    """A DB directory as its ``balsam.toml`` described it when it was read.

    Attributes:
        path: The directory, absolute.
        db_type: Canonical name of the backend, e.g. ``sqlite``.
        id: 32 hexadecimal digits, given at creation; a moved or copied directory keeps it.
        settings: What the backend chose to remember at ``balsam init``; no secrets.
    """

    path: Path
    db_type: str
    id: str
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    @property
    def config_file(self) -> Path:
        """``balsam.toml``: what this directory is."""
        return self.path / CONFIG_NAME

    @property
    def address_file(self) -> Path:
        """``dbwriter_address``: where clients find the server."""
        return self.path / "dbwriter_address"

    @property
    def keys(self) -> Path:
        """Folder of keys and password files, 0700."""
        return self.path / "keys"

    @cached_property
    def data(self) -> Path:
        """Folder of the jobs' working directories, one folder per workflow."""
        return self.path / "data"

    @property
    def log(self) -> Path:
        """Folder of log files."""
        return self.path / "log"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> DBDir:
        """Return the description of an existing DB directory; nothing in it is touched.

        Args:
            path: The directory; ``~`` is expanded.

        Raises:
            DBDirError: No such directory, a file, no Balsam DB, or an unreadable or damaged ``balsam.toml``.
            NoResources: It can't be read now.
            SchemaMismatch: A newer Balsam made it.
        """
        directory = expand(path)
        try:
            data = read_regular(directory / CONFIG_NAME, limit=_MAX_CONFIG_BYTES)
        except OSError as err:
            if lack := shortage(err):
                raise type(lack)(f"{shown(directory / CONFIG_NAME)} can't be read now: {lack.message}") from None
            raise DBDirError(_explain_unreadable(directory, err)) from None
        return _parse_config(directory, data)


def _explain_unreadable(path: Path, err: OSError) -> str:
    name = shown(path)
    if refused := permission_error(err, path / CONFIG_NAME):
        return refused.message
    try:
        if not path.exists():
            return f"{name} does not exist: create a DB there with: balsam init {pasted(path)}"
        if not path.is_dir():
            return f"{name} is a file, not a DB directory: name the directory that holds {CONFIG_NAME}"
    except OSError as denied:
        return f"{name} can't be looked at: {reason(denied)}; check the path"
    if isinstance(err, FileNotFoundError):
        return f"{name} is no Balsam DB (it has no {CONFIG_NAME}): create one with: balsam init {pasted(path)}"
    return f"{name}/{CONFIG_NAME} can't be read: {reason(err)}; restore it from a backup"


def _parse_config(path: Path, data: bytes) -> DBDir:
    import tomllib

    file = f"{shown(path)}/{CONFIG_NAME}"
    remedy = "restore it from a backup"
    try:
        content = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as err:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        why = " ".join(str(err).split())
        raise DBDirError(f"{file} can't be understood: {why}; {remedy}") from None
    version = content.get("format")
    if type(version) is not int or version < 1:
        raise DBDirError(f"{file} names no format number; {remedy}")
    if version > FORMAT:
        raise SchemaMismatch(f"{file} has format {version}, this Balsam knows {FORMAT}: upgrade with pip")
    db_type, identity, settings = content.get("db_type"), content.get("id"), content.get("settings", {})
    if not isinstance(db_type, str) or not PLUGIN_NAME.fullmatch(db_type):
        raise DBDirError(f"{file} names no database type (db_type); {remedy}")
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        raise DBDirError(f"{file} holds no id of 32 hexadecimal digits; {remedy}")
    if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
        raise DBDirError(f"{file}: [settings] must be a table of texts; {remedy}")
    return DBDir(path=path, db_type=db_type, id=identity, settings=MappingProxyType(settings))


def make_tree(path: Path) -> None:
    """Make the folders of a DB directory where they are missing: ``data``, ``log`` and ``keys``, each 0700.

    Raises:
        OSError: One can't be made.
    """
    for name in ("data", "log", "keys"):
        (path / name).mkdir(mode=0o700, exist_ok=True)


def write_config(db: DBDir) -> None:
    """Write ``balsam.toml`` atomically.

    Raises:
        InvalidInput: A setting can't be written as text.
        OSError: The file can't be written.
    """
    lines = [
        "# This directory is a Balsam DB. Written by `balsam init`; change settings with it, not here.",
        f"format = {FORMAT}",
        f"db_type = {_toml_string(db.db_type)}",
        f"id = {_toml_string(db.id)}",
        "",
        "[settings]",
        *(f"{_toml_string(name)} = {_toml_string(value)}" for name, value in sorted(db.settings.items())),
        "",
    ]
    try:
        data = "\n".join(lines).encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"a setting of {shown(db.path)} is not valid Unicode text; use UTF-8") from None
    atomic_write(db.config_file, data)


def _toml_string(text: str) -> str:
    # A TOML basic string is a JSON string, but for DEL and for the surrogate pairs of JSON's ASCII form.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
