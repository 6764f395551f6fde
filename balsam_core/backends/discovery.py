"""Which distributions offer plugins of a kind, by their installed metadata alone: none of their code is imported.

pluggy's own loader is not used: with it one broken plugin stops all, and of two plugins with one name the first wins
silently.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.metadata import Distribution

    from balsam_core.backends.kinds import PluginKind


@dataclass(frozen=True, kw_only=True)
class EntryPoint:
    """One entry point of a plugin.

    Attributes:
        kind: Name of the plugin's kind.
        name: The entry point's name, unchecked; ``?`` and the package where the metadata can't be read.
        module: The entry point's value, unchecked.
        package: Name of the distribution.
        version: Its version.
        location: Path of its metadata, which tells apart two distributions of one name.
        fault: Why the metadata can't be used; empty when it can.
    """

    kind: str
    name: str
    module: str
    package: str
    version: str
    location: str
    fault: str = ""

    @property
    def provider(self) -> str:
        """Distribution and version, e.g. ``balsam-sqlite 0.1.0``."""
        return f"{self.package} {self.version}".strip()


def entry_points(kind: PluginKind) -> list[EntryPoint]:
    """Return the entry points of all installed plugins of a kind, in the order of ``sys.path``.

    The same entry point of a distribution that is found twice (a stale editable install beside a new one) counts once.
    """
    found: dict[tuple[str, str, str], EntryPoint] = {}
    for metadata in _installed_metadata():
        try:
            text = metadata.read_file("entry_points.txt")
        except (OSError, ValueError) as err:
            import logging

            logging.getLogger(__name__).debug("entry points of %s skipped: %s", metadata.location, err)
            continue
        if kind.group in text:
            for point in _entry_points_of(kind, metadata, text):
                found.setdefault((normalized(point.package), point.name, point.module), point)
    return list(found.values())


def normalized(package: str) -> str:
    """Return a distribution's name as it is compared.

    See https://packaging.python.org/en/latest/specifications/name-normalization/.
    """
    return re.sub(r"[-_.]+", "-", package).lower()


class _Metadata(NamedTuple):
    """The metadata of one distribution: https://packaging.python.org/en/latest/specifications/.

    Attributes:
        location: Path of its folder.
        read_file: Returns the text of a file, empty where there is none.
    """

    location: str
    read_file: Callable[[str], str]


def _installed_metadata() -> Iterator[_Metadata]:
    """Give the metadata of all installed distributions, in the order of ``sys.path``.

    importlib.metadata is used only for what is no folder, e.g. a zip file: its import costs a command 18 ms, a fifth of
    its time.
    """
    for path in dict.fromkeys(sys.path):
        try:
            with os.scandir(path or ".") as entries:
                names = sorted(entry.name for entry in entries if entry.name.endswith((".dist-info", ".egg-info")))
        except NotADirectoryError:
            from importlib.metadata import distributions

            for found in distributions(path=[path]):
                yield _Metadata(str(getattr(found, "_path", path)), partial(_read_text, found))
        except OSError:
            continue
        else:
            for name in names:
                folder = f"{os.path.abspath(path)}/{name}"  # noqa: PTH100  (pathlib is not needed)
                yield _Metadata(folder, partial(_read_file, folder))


def _read_text(distribution: Distribution, name: str) -> str:
    return distribution.read_text(name) or ""


def _read_file(folder: str, name: str) -> str:
    try:
        with open(f"{folder}/{name}", encoding="utf-8") as file:  # noqa: PTH123  (pathlib is not needed)
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _entry_points_of(kind: PluginKind, metadata: _Metadata, text: str) -> list[EntryPoint]:
    """Return the entry points of one distribution, whose metadata may be malformed."""
    package = _read_field(metadata, "Name") or metadata.location.rpartition("/")[2]
    version = _read_field(metadata, "Version")
    points, fault = _parse(kind.group, text)
    if fault:
        points = [(f"?{package}", "")]
    return [
        EntryPoint(
            kind=kind.name,
            name=name,
            module=value,
            package=package,
            version=version,
            location=metadata.location,
            fault=fault,
        )
        for name, value in points
    ]


def _parse(wanted: str, text: str) -> tuple[list[tuple[str, str]], str]:
    """Return names and values of the wanted group, and why the text can't be understood, empty where it can."""
    points = []
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and line[0] not in "#;":
            name, equals, value = line.partition("=")
            if not equals or not name.strip():
                return [], f"its entry_points.txt can't be understood: {line[:80]!r}"
            if group == wanted:
                points.append((name.strip(), value.strip()))
    return points, ""


def _read_field(metadata: _Metadata, name: str) -> str:
    """Return one field of the core metadata; parsing all of it as e-mail takes longer than finding the plugins."""
    try:
        text = metadata.read_file("METADATA") or metadata.read_file("PKG-INFO")
    except (OSError, ValueError):
        return ""
    match = re.search(rf"^{name}:(.*)$", text.partition("\n\n")[0], re.MULTILINE | re.IGNORECASE)
    return match[1].strip() if match else ""
