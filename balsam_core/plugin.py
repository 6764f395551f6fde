"""The public API for plugin authors: everything that a plugin may import from Balsam. Nothing else is stable.

What the core has not loaded anyway is imported when it is first used, so that a plugin's module loads fast. See
:mod:`balsam_core.hookspecs` for the hooks to implement and :mod:`balsam_core.testing` for the suite that tests a
backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from balsam_core.hookspecs import hookimpl
from balsam_core.hookspecs.backend import BackendModule
from balsam_core.plugin_types import PLUGIN_API, DBType, EngineRole, MPIKind, ServerPlan, ServerPolicy

if TYPE_CHECKING:
    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.options import option_choice, option_value
    from balsam_core.dbdir.passwords import password_file, read_password, store_password
    from balsam_core.dbdir.publication import is_loopback, published_address, refuse_while_served, server_not_running
    from balsam_core.proxy.client.served_transport import ServedTransport
    from balsam_core.proxy.single_writer import SingleWriter, write_server_plan
    from balsam_core.system.certificates import make_certificate
    from balsam_core.system.files import atomic_write, force_to_disk, reason, rename_new, shown
    from balsam_core.system.filesystems import filesystem_type, is_network
    from balsam_core.system.network import local_host
    from balsam_core.system.permissions import who_may
    from balsam_core.system.private_files import private_file, write_private
    from balsam_core.system.server_accounts import ServerAccount, failure_reason
    from balsam_core.transport.base import ServerStatus, Transport
    from balsam_core.transport.connector import ServerConnector
    from balsam_core.transport.deadlines import seconds_left
    from balsam_core.transport.native import NativeTransport

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
    "MPIKind",
    "NativeTransport",
    "NotFound",
    "OutcomeUnknown",
    "SchemaMismatch",
    "ServedTransport",
    "ServerAccount",
    "ServerConnector",
    "ServerNotRunning",
    "ServerPlan",
    "ServerPolicy",
    "ServerStatus",
    "SingleWriter",
    "Transport",
    "Unavailable",
    "atomic_write",
    "failure_reason",
    "filesystem_type",
    "force_to_disk",
    "hookimpl",
    "is_loopback",
    "is_network",
    "local_host",
    "make_certificate",
    "option_choice",
    "option_value",
    "password_file",
    "private_file",
    "published_address",
    "read_password",
    "reason",
    "refuse_while_served",
    "rename_new",
    "seconds_left",
    "server_not_running",
    "shown",
    "store_password",
    "who_may",
    "write_private",
    "write_server_plan",
]

_MODULES = {
    "balsam_core.dbdir.address": ("Address",),
    "balsam_core.dbdir.directory": ("DBDir",),
    "balsam_core.dbdir.options": ("option_choice", "option_value"),
    "balsam_core.dbdir.passwords": ("password_file", "read_password", "store_password"),
    "balsam_core.dbdir.publication": ("is_loopback", "published_address", "refuse_while_served", "server_not_running"),
    "balsam_core.proxy.client.served_transport": ("ServedTransport",),
    "balsam_core.proxy.single_writer": ("SingleWriter", "write_server_plan"),
    "balsam_core.system.certificates": ("make_certificate",),
    "balsam_core.system.files": ("atomic_write", "force_to_disk", "reason", "rename_new", "shown"),
    "balsam_core.system.filesystems": ("filesystem_type", "is_network"),
    "balsam_core.system.network": ("local_host",),
    "balsam_core.system.permissions": ("who_may",),
    "balsam_core.system.private_files": ("private_file", "write_private"),
    "balsam_core.system.server_accounts": ("ServerAccount", "failure_reason"),
    "balsam_core.transport.connector": ("ServerConnector",),
    "balsam_core.transport.deadlines": ("seconds_left",),
    "balsam_core.transport.base": ("ServerStatus", "Transport"),
    "balsam_core.transport.native": ("NativeTransport",),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for home, names in _MODULES.items():
        if name in names:
            value: object = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
