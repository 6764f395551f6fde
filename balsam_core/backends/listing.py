"""The installed plugins of all kinds, as ``balsam plugins`` shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.backends import registry
from balsam_core.backends.installed import InstalledPlugins
from balsam_core.backends.kinds import BACKEND, KINDS

if TYPE_CHECKING:
    from balsam_core.backends.installed import PluginStatus


def list_plugins() -> list[PluginStatus]:
    """Return one row for each plugin, installed or official; nothing heavy is loaded."""
    return [row for plugins in _of_all_kinds() for row in plugins.statuses()]


def check_plugins(name: str | None = None) -> list[PluginStatus]:
    """Load the plugins with this name, or all, with their drivers, and return their states.

    Raises:
        BackendError: There is none with this name.
    """
    backends, *others = _of_all_kinds()
    if name is None:
        return [row for plugins in (backends, *others) for row in plugins.check()]
    found = [row for plugins in others if name in plugins.entry_points for row in plugins.check(name)]
    if found and registry.canonical(name) not in backends.entry_points:
        return found
    return backends.check(name) + found


def _of_all_kinds() -> list[InstalledPlugins]:
    """Return the installed plugins by kind, backends first."""
    return [registry.installed(), *(InstalledPlugins(kind) for kind in KINDS.values() if kind is not BACKEND)]
