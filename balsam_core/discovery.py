"""Which distributions announce a backend, from installed metadata alone: nothing of theirs is imported.

Not pluggy's own loader: there one broken plugin stops all, and of two plugins with one name the first wins silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = ["GROUP", "Announcement", "announcements"]

GROUP = "balsam.backends"
"""The entry-point group: name = db type, value = module of hook functions."""


@dataclass(frozen=True, kw_only=True)
class Announcement:
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


def announcements() -> list[Announcement]:
    """Return all announced backends, those first that come first on ``sys.path``.

    A distribution that is found twice with the same entry (a stale editable install beside a new one) counts once.
    """
    from importlib.metadata import distributions

    found: dict[tuple[str, str, str], Announcement] = {}
    for distribution in distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except (OSError, ValueError) as err:
            import logging

            logging.getLogger(__name__).debug("entry points of %s skipped: %s", _location(distribution), err)
            continue
        if GROUP in text:
            for one in _announced(distribution):
                found.setdefault((re.sub(r"[-_.]+", "-", one.package).lower(), one.db_type, one.module), one)
    return list(found.values())


def _announced(distribution: Distribution) -> list[Announcement]:
    """Return what one distribution announces; its metadata may be any kind of garbage."""
    location = _location(distribution)
    package = _field(distribution, "Name") or location.rpartition("/")[2]
    version = _field(distribution, "Version")
    try:
        points = [(point.name, point.value) for point in distribution.entry_points if point.group == GROUP]
    except Exception as err:  # noqa: BLE001
        fault = f"its entry_points.txt can't be understood: {type(err).__name__}: {err}"
        points = [(f"?{package}", "")]
    else:
        fault = ""
    return [
        Announcement(db_type=name, module=value, package=package, version=version, location=location, fault=fault)
        for name, value in points
    ]


def _field(distribution: Distribution, name: str) -> str:
    """Return one field of the core metadata; parsing all of it as e-mail costs more than finding the plugins."""
    try:
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    except (OSError, ValueError):
        return ""
    match = re.search(rf"^{name}:(.*)$", text.partition("\n\n")[0], re.MULTILINE | re.IGNORECASE)
    return match[1].strip() if match else ""


def _location(distribution: Distribution) -> str:
    return str(getattr(distribution, "_path", None) or "?")
