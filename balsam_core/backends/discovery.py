"""Which distributions announce a backend, from installed metadata alone: nothing of theirs is imported.

Not pluggy's own loader: there one broken plugin stops all, and of two plugins with one name the first wins silently.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import Distribution

__all__ = ["GROUP", "EntryPoint", "entry_points"]

GROUP = "balsam.backends"
"""The entry-point group: name = db type, value = module of hook functions."""


@dataclass(frozen=True, kw_only=True)
class EntryPoint:
    """One entry point of the group.

    Attributes:
        db_type: The entry point's name, unchecked; ``?`` and the package where the metadata can't be read.
        module: The entry point's value, unchecked.
        package: Name of the distribution.
        version: Its version.
        location: Where its metadata is, to tell two of one name apart.
        fault: Why the metadata can't be used; empty when it can.
    """

    db_type: str
    module: str
    package: str
    version: str
    location: str
    fault: str = ""

    @property
    def provider(self) -> str:
        """Distribution and version in words, e.g. ``balsam-sqlite 0.1.0``."""
        return f"{self.package} {self.version}".strip()


def entry_points() -> list[EntryPoint]:
    """Return all announced backends, those first that come first on ``sys.path``.

    A distribution that is found twice with the same entry (a stale editable install beside a new one) counts once.
    """
    found: dict[tuple[str, str, str], EntryPoint] = {}
    for metadata in _metadata():
        try:
            text = metadata("entry_points.txt")
        except (OSError, ValueError) as err:
            import logging

            logging.getLogger(__name__).debug("entry points of %s skipped: %s", metadata.location, err)
            continue
        if GROUP in text:
            for one in _announced(metadata, text):
                found.setdefault((re.sub(r"[-_.]+", "-", one.package).lower(), one.db_type, one.module), one)
    return list(found.values())


class _Folder:
    """The metadata of one distribution: https://packaging.python.org/en/latest/specifications/."""

    def __init__(self, location: str) -> None:
        self.location = location

    def __call__(self, name: str) -> str:
        """Return a file's text, empty where there is none."""
        try:
            with open(f"{self.location}/{name}", encoding="utf-8") as file:  # noqa: PTH123  (pathlib is not needed)
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return ""


class _Elsewhere:
    """The metadata of a distribution that is no folder, e.g. in a zip file."""

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        self.location = str(getattr(distribution, "_path", None) or "?")

    def __call__(self, name: str) -> str:
        """Return a file's text, empty where there is none."""
        return self._distribution.read_text(name) or ""


def _metadata() -> Iterator[_Folder | _Elsewhere]:
    """Give the metadata of all installed distributions, in the order of ``sys.path``.

    importlib.metadata would do, but its import costs a command 18 ms, a fifth of its time; it is left for what is no
    folder.
    """
    for place in dict.fromkeys(sys.path):
        try:
            with os.scandir(place or ".") as entries:
                names = sorted(entry.name for entry in entries if entry.name.endswith((".dist-info", ".egg-info")))
        except NotADirectoryError:
            from importlib.metadata import distributions

            yield from map(_Elsewhere, distributions(path=[place]))
        except OSError:
            continue
        else:
            yield from (_Folder(f"{os.path.abspath(place)}/{name}") for name in names)  # noqa: PTH100


def _announced(metadata: _Folder | _Elsewhere, text: str) -> list[EntryPoint]:
    """Return what one distribution announces; its metadata may be any kind of garbage."""
    package = _field(metadata, "Name") or metadata.location.rpartition("/")[2]
    version = _field(metadata, "Version")
    points, fault = _entry_points(text)
    if fault:
        points = [(f"?{package}", "")]
    return [
        EntryPoint(
            db_type=name, module=value, package=package, version=version, location=metadata.location, fault=fault
        )
        for name, value in points
    ]


def _entry_points(text: str) -> tuple[list[tuple[str, str]], str]:
    """Return names and values of the group, and why the text can't be understood, empty where it can."""
    points = []
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and line[0] not in "#;":
            name, equals, value = line.partition("=")
            if not equals or not name.strip():
                return [], f"its entry_points.txt can't be understood: {line[:80]!r}"
            if group == GROUP:
                points.append((name.strip(), value.strip()))
    return points, ""


def _field(metadata: _Folder | _Elsewhere, name: str) -> str:
    """Return one field of the core metadata; parsing all of it as e-mail costs more than finding the plugins."""
    try:
        text = metadata("METADATA") or metadata("PKG-INFO")
    except (OSError, ValueError):
        return ""
    match = re.search(rf"^{name}:(.*)$", text.partition("\n\n")[0], re.MULTILINE | re.IGNORECASE)
    return match[1].strip() if match else ""
