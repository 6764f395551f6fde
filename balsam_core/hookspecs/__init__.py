"""The hooks that plugins implement: a module for each kind of plugin.

A plugin is a module with functions that are marked with :data:`hookimpl`. An entry point of its distribution names the
module. The group of the entry point is the kind of the plugin, e.g. ``balsam.backends``. An implementation may leave
out arguments that it doesn't need. A :class:`~balsam_core.errors.BalsamError` reaches the user as it is; any other
exception is reported as a fault of the plugin. Plugin authors import only from :mod:`balsam_core.plugin`.
"""

from __future__ import annotations

import pluggy

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "balsam"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of the hook that has its name."""
