"""The door for plugin authors: everything that a backend may import from Balsam, and nothing else is promised.

Each name is loaded when it is first used, so that a plugin's module stays light. See :mod:`balsam_core.hookspecs` for
the hooks to implement and :mod:`balsam_core.testing` for the suite that says whether a backend is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balsam_core.address import Address
    from balsam_core.certificates import make_certificate
    from balsam_core.connector import ServerConnector
    from balsam_core.dbdir import DBDir
    from balsam_core.deadlines import seconds_left
    from balsam_core.errors import (
        BackendError,
        BalsamError,
        Busy,
        Conflict,
        Corrupt,
        DBDirError,
        InvalidInput,
        NotFound,
        OutcomeUnknown,
        SchemaMismatch,
        ServerNotRunning,
        Unavailable,
    )
    from balsam_core.files import atomic_write, force_to_disk, rename_new, shown
    from balsam_core.filesystems import filesystem_type, is_network
    from balsam_core.hookspecs import BackendModule, hookimpl
    from balsam_core.plugin_types import PLUGIN_API, DBType, EngineRole, ServerPlan, ServerPolicy
    from balsam_core.private_files import private_file, write_private
    from balsam_core.proxy.routing import ServedTransport
    from balsam_core.proxy.serving import SingleWriter, write_server_plan
    from balsam_core.publication import is_loopback
    from balsam_core.transport import NativeTransport, ServerStatus, Transport

__all__ = [
    "PLUGIN_API",
    "Address",
    "BackendError",
    "BackendModule",
    "BalsamError",
    "Busy",
    "Conflict",
    "Corrupt",
    "DBDir",
    "DBDirError",
    "DBType",
    "EngineRole",
    "InvalidInput",
    "NativeTransport",
    "NotFound",
    "OutcomeUnknown",
    "SchemaMismatch",
    "ServedTransport",
    "ServerConnector",
    "ServerNotRunning",
    "ServerPlan",
    "ServerPolicy",
    "ServerStatus",
    "SingleWriter",
    "Transport",
    "Unavailable",
    "atomic_write",
    "filesystem_type",
    "force_to_disk",
    "hookimpl",
    "is_loopback",
    "is_network",
    "make_certificate",
    "private_file",
    "rename_new",
    "seconds_left",
    "shown",
    "write_private",
    "write_server_plan",
]

_HOMES = {
    "balsam_core.address": ("Address",),
    "balsam_core.certificates": ("make_certificate",),
    "balsam_core.connector": ("ServerConnector",),
    "balsam_core.dbdir": ("DBDir",),
    "balsam_core.deadlines": ("seconds_left",),
    "balsam_core.errors": (
        "BackendError",
        "BalsamError",
        "Busy",
        "Conflict",
        "Corrupt",
        "DBDirError",
        "InvalidInput",
        "NotFound",
        "OutcomeUnknown",
        "SchemaMismatch",
        "ServerNotRunning",
        "Unavailable",
    ),
    "balsam_core.files": ("atomic_write", "force_to_disk", "rename_new", "shown"),
    "balsam_core.filesystems": ("filesystem_type", "is_network"),
    "balsam_core.hookspecs": ("BackendModule", "hookimpl"),
    "balsam_core.plugin_types": ("PLUGIN_API", "DBType", "EngineRole", "ServerPlan", "ServerPolicy"),
    "balsam_core.private_files": ("private_file", "write_private"),
    "balsam_core.proxy.routing": ("ServedTransport",),
    "balsam_core.proxy.serving": ("SingleWriter", "write_server_plan"),
    "balsam_core.publication": ("is_loopback",),
    "balsam_core.transport": ("NativeTransport", "ServerStatus", "Transport"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
