"""What was found out about plugins, kept in the user's cache directory.

The report of a plugin that works is used until one of the files that were read for it changes, so that a command need
not load the plugin in another process first. Programs that search for modules in different folders have reports of
their own.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Literal

import msgspec

from balsam_core.errors import BalsamError
from balsam_core.plugin_types import MPIKind
from balsam_core.system.files import atomic_write, read_regular
from balsam_core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from balsam_core.backends.discovery import EntryPoint

CACHE_NAME = "plugins.json"
LARGEST_CACHE = 16 * 1024 * 1024  # bytes
MOST_REPORTS = 8  # that are kept of one plugin, for programs with different paths


class ProbeReport(msgspec.Struct, kw_only=True):
    """What is known about a plugin, or about one that can't be used.

    Attributes:
        status: ``ok`` or the kind of fault.
        detail: Why, on one line; empty when ok.
        remedy: What to do, on one line; empty when ok.
        server: The server policy; empty where it is unknown.
        api: The plugin API that it was written for, None where it is unknown.
        mpi: What an MPI kind is; None for other plugins.
        traceback: Of the exception; empty when there is none.
        files: The files that were read, with their times of change in ns.
    """

    status: Literal["ok", "driver missing", "broken", "incompatible"] = "ok"
    detail: str = ""
    remedy: str = ""
    server: str = ""
    api: int | None = None
    mpi: MPIKind | None = None
    traceback: str = ""
    files: dict[str, int | None] = {}


class _CachedReport(msgspec.Struct):
    key: list[str]
    report: ProbeReport


def find(plugins: Mapping[str, list[EntryPoint]]) -> dict[str, ProbeReport]:
    """Return the reports that are still true, by name.

    Args:
        plugins: By name, all its entry points.
    """
    cached = _read()
    found = {}
    for name in plugins.keys() & cached.keys():
        key = _key(plugins[name])
        for one in cached[name]:
            if one.key == key and all(changed(file) == then for file, then in one.report.files.items()):
                found[name] = one.report
    return found


def keep(plugins: Mapping[str, list[EntryPoint]], reports: Mapping[str, ProbeReport]) -> None:
    """Keep the reports of plugins that work; where they can't be written, each program looks again."""
    cached = _read()
    for name, report in reports.items():
        if report.status == "ok":
            key = _key(plugins[name])
            others = [one for one in cached.get(name, ()) if one.key != key]
            cached[name] = [_CachedReport(key, report), *others][:MOST_REPORTS]
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, msgspec.json.encode(cached))


def changed(path: str) -> int | None:
    """Return when a file was changed, in ns; None where it can't be looked at."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116  (hundreds of files)
    except OSError:
        return None


def _file() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("balsam", appauthor=False) / CACHE_NAME


def _key(points: list[EntryPoint]) -> list[str]:
    """Return what tells a plugin apart, and what the finding of its modules depends on."""
    folders = [f"{folder} {changed(folder)}" for folder in sys.path]
    return [__version__, sys.executable, sys.version, *map(repr, points), *folders]


def _read() -> dict[str, list[_CachedReport]]:
    try:
        data = read_regular(_file(), limit=LARGEST_CACHE)
        return msgspec.json.decode(data, type=dict[str, list[_CachedReport]])
    except (OSError, ValueError, BalsamError, RuntimeError):  # the last where the user has no home directory
        return {}
