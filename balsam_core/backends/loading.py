"""Loading one announced plugin, and saying what is wrong with it instead of failing.

Whatever a plugin does at import or in its identity card ends here as a :class:`PluginError`.
"""

from __future__ import annotations

import re
from importlib import import_module
from inspect import isfunction, signature
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from balsam_core.plugin_types import PLUGIN_API, DBType

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pluggy

    from balsam_core.backends.discovery import EntryPoint
    from balsam_core.dbdir.directory import DBDir

__all__ = [
    "ALIASES",
    "PREFIX",
    "Fault",
    "PluginError",
    "check_driver",
    "check_modules",
    "is_ctrl_c",
    "load_plugin",
    "one_line",
]

ALIASES = {"sqlite3": "sqlite", "postgresql": "postgres", "mariadb": "mysql"}
LONGEST_REASON = 500  # characters of an exception's message
PREFIX = "balsam.backends:"  # of a backend's name in pluggy, to tell it from a wrapper

Fault = Literal["driver missing", "broken", "incompatible"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class PluginError(Exception):
    """What is wrong with one plugin.

    Attributes:
        status: The fault in a word.
        detail: Why, on one line.
        remedy: What to do, on one line.
        identity: What the plugin said of itself, None if it never came to that.
    """

    def __init__(self, status: Fault, detail: str, remedy: str, identity: DBType | None = None) -> None:
        super().__init__(detail)
        self.status: Fault = status
        self.detail = " ".join(detail.split())
        self.remedy = remedy
        self.identity = identity


def one_line(err: BaseException) -> str:
    """Return an exception's type and message on one line, cut where it is endless."""
    try:
        text = str(err)[:LONGEST_REASON]
    except Exception:  # noqa: BLE001  (the exception's own code)
        text = "it can't be shown"
    return " ".join(f"{type(err).__name__}: {text}".split()).removesuffix(":")


def is_ctrl_c(err: BaseException) -> bool:
    """Say whether an exception is the user's, not the plugin's: Ctrl-C is heard in the main thread only."""
    from threading import current_thread, main_thread

    return type(err) is KeyboardInterrupt and current_thread() is main_thread()


def load_plugin(name: str, announced: Sequence[EntryPoint], manager: pluggy.PluginManager) -> tuple[DBType, ModuleType]:
    """Import the plugin of a db type, check it against the contract and register its hooks.

    Args:
        name: The db type.
        announced: All that announce it: one, if all is well.
        manager: Knows the hook specifications.

    Raises:
        PluginError: It can't be used; nothing of it is registered.
    """
    one = announced[0]
    repair = f"repair it with: pip install --force-reinstall {one.package}"
    _check_announcement(name, announced, repair)
    try:
        module = import_module(one.module)
        identity: object = module.balsam_db_type()
    except BaseException as err:
        if is_ctrl_c(err):
            raise
        raise PluginError("broken", one_line(err), repair) from err
    if not isinstance(identity, DBType):
        raise PluginError("broken", f"balsam_db_type returned {type(identity).__name__}, not DBType", repair)
    if identity.plugin_api != PLUGIN_API:
        outdated = "balsam-core" if identity.plugin_api > PLUGIN_API else one.package
        why = f"it needs plugin API {identity.plugin_api}, this core has {PLUGIN_API}"
        raise PluginError("incompatible", why, f"upgrade with: pip install -U {outdated}", identity)
    if identity.name != name:
        raise PluginError("broken", f"it calls itself {identity.name}", repair, identity)
    plugin = _adapted(module)
    _register(name, plugin, identity, manager, repair)
    return identity, plugin


def check_driver(identity: DBType, package: str, *, load: bool) -> None:
    """Check that a plugin's driver is there.

    Args:
        identity: The plugin's identity.
        package: Its distribution.
        load: Whether to import the driver; else only look for it.

    Raises:
        PluginError: The driver is missing or doesn't load.
    """
    from importlib.util import find_spec

    if not identity.driver:
        return
    remedy = identity.driver_remedy or f"install it with: pip install --force-reinstall {package}"
    try:
        if load:
            import_module(identity.driver)
            return
        found = find_spec(identity.driver) is not None
    except ValueError:  # it is loaded, but without a specification
        return
    except BaseException as err:
        if is_ctrl_c(err):
            raise
        raise PluginError("broken", f"the driver {identity.driver}: {one_line(err)}", remedy, identity) from err
    if not found:
        raise PluginError("driver missing", f"the driver {identity.driver} is not installed", remedy, identity)


def check_modules(identity: DBType, package: str, entry: str) -> None:
    """Import every module of a plugin's package: some are needed late, and one may want what this core hasn't.

    Args:
        identity: The plugin's identity.
        package: Its distribution.
        entry: The module that it announces.

    Raises:
        PluginError: One can't be imported.
    """
    from importlib.util import find_spec
    from pkgutil import walk_packages

    home = entry.partition(".")[0]
    spec = find_spec(home)
    if spec is None or spec.submodule_search_locations is None:  # one module, which is loaded
        return
    name = home
    try:
        for found in walk_packages(spec.submodule_search_locations, f"{home}.", onerror=lambda _name: None):
            name = found.name
            if not name.endswith(".__main__"):  # a program, which would run
                import_module(name)
    except BaseException as err:
        if is_ctrl_c(err):
            raise
        repair = f"repair it with: pip install --force-reinstall {package}, or upgrade balsam-core and {package}"
        raise PluginError("broken", f"its module {name}: {one_line(err)}", repair, identity) from err


def _check_announcement(name: str, announced: Sequence[EntryPoint], repair: str) -> None:
    one = announced[0]
    if len(announced) > 1:
        both = " and ".join(f"{each.provider} ({each.location})" for each in announced)
        raise PluginError("broken", f"the name is taken by {both}", "uninstall all of them but one")
    if one.fault:
        raise PluginError("broken", one.fault, repair)
    if name in ALIASES:
        raise PluginError("broken", f"{name} is an alias of {ALIASES[name]}", f"tell the authors of {one.package}")
    if not _NAME.fullmatch(name):
        why = f"the db type {name!a} is not a lower-case word of letters, digits and underscores"
        raise PluginError("broken", why, f"tell the authors of {one.package}")
    if ":" in one.module:
        why = f"the entry point's value {one.module!a} does not name a module"
        raise PluginError("broken", why, f"tell the authors of {one.package}")


def _adapted(module: ModuleType) -> ModuleType:
    """Return a plugin whose hooks take today's arguments, made of one that may still take an ``address``.

    The first plugins of plugin API 1 were given the published server by two hooks. A plugin that still asks for it is
    told by this adapter; pluggy would refuse it.
    """
    old = {
        hook: function
        for hook in ("balsam_open_transport", "balsam_create_engine")
        if isfunction(function := getattr(module, hook, None)) and "address" in signature(function).parameters
    }
    if not old:
        return module
    from balsam_core.dbdir.publication import published_address
    from balsam_core.hookspecs import hookimpl

    def call(hook: str, **arguments: object) -> object:
        arguments["address"] = published_address(arguments["db"])  # type: ignore[arg-type]
        names = signature(old[hook]).parameters
        return old[hook](**{name: value for name, value in arguments.items() if name in names})

    @hookimpl
    def balsam_open_transport(db: DBDir) -> object:
        return call("balsam_open_transport", db=db)

    @hookimpl
    def balsam_create_engine(db: DBDir, role: str) -> object:
        return call("balsam_create_engine", db=db, role=role)

    adapted = ModuleType(module.__name__)
    vars(adapted).update(vars(module))
    new = {"balsam_open_transport": balsam_open_transport, "balsam_create_engine": balsam_create_engine}
    vars(adapted).update({hook: new[hook] for hook in old})
    return adapted


def _register(name: str, module: ModuleType, identity: DBType, manager: pluggy.PluginManager, repair: str) -> None:
    """Register the hooks, all or none."""
    from balsam_core import hookspecs
    from balsam_core.hookspecs import OPTIONAL

    try:
        manager.register(module, PREFIX + name)
        present = {caller.name for caller in manager.get_hookcallers(module) or []}
        absent = [hook for hook in hookspecs.__all__ if hook.startswith("balsam_") and hook not in present | OPTIONAL]
        fault = f"it lacks the hook {absent[0]}" if absent else ""
        if not fault:
            manager.check_pending()
    except Exception as err:  # noqa: BLE001  (pluggy's own, and what a strange module raises when it is looked at)
        fault = one_line(err)
    if fault:
        if manager.get_plugin(PREFIX + name) is not None:
            manager.unregister(name=PREFIX + name)
        raise PluginError("broken", fault, repair, identity)
