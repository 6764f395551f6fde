"""Loading one installed plugin, and reporting what is wrong with it instead of failing.

Whatever a plugin of any kind raises at import or in its identity card becomes a :class:`PluginError`.
"""

from __future__ import annotations

from importlib import import_module
from inspect import isfunction, signature
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from balsam_core.backends.kinds import KINDS
from balsam_core.plugin_types import PLUGIN_API, PLUGIN_NAME, DBType, PluginCard, ServerPolicy
from balsam_core.system.shortages import shortage

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pluggy

    from balsam_core.backends.discovery import EntryPoint
    from balsam_core.backends.kinds import PluginKind
    from balsam_core.dbdir.directory import DBDir

LONGEST_REASON = 500  # characters of an exception's message
PREFIX = "balsam.plugins:"  # of a plugin's name in pluggy, which tells it from a wrapper

FaultStatus = Literal["driver missing", "broken", "incompatible"]


class PluginError(Exception):
    """What is wrong with one plugin.

    Attributes:
        status: The kind of fault.
        detail: Why, on one line.
        remedy: What to do, on one line.
        identity: The plugin's identity card, None if it could not be had.
    """

    def __init__(self, status: FaultStatus, detail: str, remedy: str, identity: PluginCard | None = None) -> None:
        super().__init__(detail)
        self.status: FaultStatus = status
        self.detail = " ".join(detail.split())
        self.remedy = remedy
        self.identity = identity


def new_manager(kind: PluginKind) -> pluggy.PluginManager:
    """Return a manager of plugins that knows the hook specifications of a kind and has no plugin."""
    import pluggy

    from balsam_core.hookspecs import PROJECT

    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(import_module(kind.hookspecs))
    return manager


def describe_exception(err: BaseException) -> str:
    """Return an exception's type and message on one line of limited length."""
    try:
        text = str(err)[:LONGEST_REASON]
    except Exception:  # noqa: BLE001  (the exception's own code)
        text = "it can't be shown"
    return " ".join(f"{type(err).__name__}: {text}".split()).removesuffix(":")


def is_ctrl_c(err: BaseException) -> bool:
    """Say whether an exception is the user's Ctrl-C, which only the main thread gets, and not one of the plugin's."""
    from threading import current_thread, main_thread

    return type(err) is KeyboardInterrupt and current_thread() is main_thread()


def load_plugin(
    name: str, entry_points: Sequence[EntryPoint], manager: pluggy.PluginManager
) -> tuple[PluginCard, ModuleType]:
    """Import a plugin, check it against the contract of its kind and register its hooks.

    Args:
        name: The plugin's name.
        entry_points: All entry points of this name: one, if all is well.
        manager: Knows the hook specifications of its kind.

    Raises:
        PluginError: It can't be used; none of its hooks is registered.
        NoResources: It can't be imported now.
    """
    entry_point = entry_points[0]
    kind = KINDS[entry_point.kind]
    _check_entry_points(name, entry_points, kind)
    tell = remedy_of_a_bug(entry_point.package)
    try:
        module = import_module(entry_point.module)
        identity: object = getattr(module, kind.card_hook)()
    except BaseException as err:
        if is_ctrl_c(err):
            raise
        _refuse_shortage(err)
        remedy = f"repair it with: pip install --force-reinstall {entry_point.package}"
        if not isinstance(err, ModuleNotFoundError):
            remedy = tell
        elif (err.name or "").partition(".")[0] != entry_point.module.partition(".")[0]:
            remedy = f"install what it needs with: pip install {entry_point.package}, or tell its authors"
        raise PluginError("broken", describe_exception(err), remedy) from err
    if not isinstance(identity, kind.card):
        what = f"{kind.card_hook} returned {type(identity).__name__}, not {kind.card.__name__}"
        raise PluginError("broken", what, tell)
    if identity.plugin_api != PLUGIN_API:
        outdated = "balsam-core" if identity.plugin_api > PLUGIN_API else entry_point.package
        why = f"it needs plugin API {identity.plugin_api}, this core has {PLUGIN_API}"
        raise PluginError("incompatible", why, f"upgrade with: pip install -U {outdated}", identity)
    if identity.name != name:
        raise PluginError("broken", f"it calls itself {identity.name}", tell, identity)
    plugin = _with_current_hooks(module)
    _register(plugin, identity, kind, manager, tell)
    return identity, plugin


def _refuse_shortage(err: BaseException) -> None:
    """Raise NoResources where an import failed for want of descriptors or memory: that is no fault of the plugin."""
    if lack := shortage(err):
        raise lack from err


def remedy_of_a_bug(package: str) -> str:
    """Return what to do about a fault in a plugin's code, on one line."""
    return f"upgrade it with: pip install -U {package}, or tell its authors; balsam plugins check shows more"


def check_driver(identity: DBType, package: str, *, load: bool) -> None:
    """Check that a plugin's driver is installed.

    Args:
        identity: The plugin's identity card.
        package: Its distribution.
        load: Whether to import the driver; else it is only searched for.

    Raises:
        PluginError: The driver is missing or can't be imported.
    """
    from importlib.util import find_spec

    if not identity.driver:
        return
    remedy = identity.driver_remedy or f"install it with: pip install {package}"
    try:
        if load:
            import_module(identity.driver)
            return
        is_found = find_spec(identity.driver) is not None
    except ValueError:  # it is loaded, but without a specification
        return
    except BaseException as err:
        if is_ctrl_c(err):
            raise
        _refuse_shortage(err)
        detail = f"the driver {identity.driver}: {describe_exception(err)}"
        raise PluginError("broken", detail, remedy, identity) from err
    if not is_found:
        raise PluginError("driver missing", f"the driver {identity.driver} is not installed", remedy, identity)


def check_modules(identity: PluginCard, package: str, entry: str) -> None:
    """Import every module of a plugin's package: some are needed late, and may need what this core lacks.

    Args:
        identity: The plugin's identity card.
        package: Its distribution.
        entry: The module that its entry point names.

    Raises:
        PluginError: One can't be imported.
    """
    from importlib.util import find_spec
    from pkgutil import walk_packages

    root = entry.partition(".")[0]
    spec = find_spec(root)
    if spec is None or spec.submodule_search_locations is None:  # a single module, which is loaded
        return
    name = root
    try:
        for found in walk_packages(spec.submodule_search_locations, f"{root}.", onerror=lambda _name: None):
            name = found.name
            if not name.endswith(".__main__"):  # a program, which would run
                import_module(name)
    except BaseException as err:
        if is_ctrl_c(err):
            raise
        _refuse_shortage(err)
        remedy = f"upgrade with: pip install -U balsam-core {package}, or tell its authors"
        raise PluginError("broken", f"its module {name}: {describe_exception(err)}", remedy, identity) from err


def _check_entry_points(name: str, entry_points: Sequence[EntryPoint], kind: PluginKind) -> None:
    entry_point = entry_points[0]
    tell_authors = f"tell the authors of {entry_point.package}"
    if len(entry_points) > 1:
        providers = " and ".join(f"{each.provider} ({each.location})" for each in entry_points)
        raise PluginError("broken", f"the name is taken by {providers}", "uninstall all of them but one")
    if entry_point.fault:
        repair = f"repair it with: pip install --force-reinstall {entry_point.package}"
        raise PluginError("broken", entry_point.fault, repair)
    if name in kind.reserved:
        raise PluginError("broken", f"{name} {kind.reserved[name]}", tell_authors)
    if not PLUGIN_NAME.fullmatch(name):
        why = f"the {kind.card.NOUN} {name!a} is not a lower-case word of letters, digits and underscores"
        raise PluginError("broken", why, tell_authors)
    if ":" in entry_point.module:
        why = f"the entry point's value {entry_point.module!a} does not name a module"
        raise PluginError("broken", why, tell_authors)


def _with_current_hooks(module: ModuleType) -> ModuleType:
    """Return a plugin whose hooks take today's arguments.

    The first plugins of plugin API 1 got the published server as the argument ``address`` of two hooks. pluggy would
    refuse a hook with an argument that its specification lacks, so such a hook is wrapped.
    """
    outdated = {
        hook: function
        for hook in ("balsam_open_transport", "balsam_create_engine")
        if isfunction(function := getattr(module, hook, None)) and "address" in signature(function).parameters
    }
    if not outdated:
        return module
    from balsam_core.dbdir.publication import published_address
    from balsam_core.hookspecs import hookimpl

    def call_with_address(hook: str, **arguments: object) -> object:
        arguments["address"] = published_address(arguments["db"])  # type: ignore[arg-type]
        names = signature(outdated[hook]).parameters
        return outdated[hook](**{name: value for name, value in arguments.items() if name in names})

    @hookimpl
    def balsam_open_transport(db: DBDir) -> object:
        return call_with_address("balsam_open_transport", db=db)

    @hookimpl
    def balsam_create_engine(db: DBDir, role: str) -> object:
        return call_with_address("balsam_create_engine", db=db, role=role)

    wrappers = {"balsam_open_transport": balsam_open_transport, "balsam_create_engine": balsam_create_engine}
    adapted = ModuleType(module.__name__)
    vars(adapted).update(vars(module))
    vars(adapted).update({hook: wrappers[hook] for hook in outdated})
    return adapted


def _register(
    module: ModuleType, identity: PluginCard, kind: PluginKind, manager: pluggy.PluginManager, remedy: str
) -> None:
    """Register all hooks or none."""
    hookspecs = import_module(kind.hookspecs)
    serverless = isinstance(identity, DBType) and identity.server is ServerPolicy.NONE
    optional = hookspecs.OPTIONAL | ({"balsam_start_server"} if serverless else set())
    try:
        manager.register(module, PREFIX + identity.name)
        present = {caller.name for caller in manager.get_hookcallers(module) or []}
        absent = [hook for hook in hookspecs.__all__ if hook.startswith("balsam_") and hook not in present | optional]
        fault = f"it lacks the hook {absent[0]}" if absent else ""
        if not fault:
            manager.check_pending()
    except Exception as err:  # noqa: BLE001  (pluggy's own, and what a module may raise when it is inspected)
        fault = describe_exception(err)
        if "'address'" in fault:
            fault += "; the argument was dropped: balsam_core.plugin.published_address(db) gives the address"
    if fault:
        if manager.get_plugin(PREFIX + identity.name) is not None:
            manager.unregister(name=PREFIX + identity.name)
        raise PluginError("broken", fault, remedy, identity)
