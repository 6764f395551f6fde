"""The installed backends: finding them, isolating the broken ones, and calling the right one.

An ordinary command loads one backend, by name, so a fault of another can't harm it. One that is not ours is loaded in
another process first, unless that is known to work: it may end this one. A fault is stored, and raised when that
backend is used, as one line that names the distribution, its version and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, TypeVar, cast

from balsam_core.backends.discovery import normalized
from balsam_core.backends.installed import InstalledPlugins
from balsam_core.backends.kinds import ALIASES, BACKEND
from balsam_core.backends.loading import (
    PREFIX,
    PluginError,
    check_driver,
    describe_exception,
    is_ctrl_c,
    load_plugin,
    new_manager,
)
from balsam_core.errors import BackendError, BalsamError
from balsam_core.plugin_types import ServerPlan, ServerPolicy
from balsam_core.system.files import names_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType
    from typing import Any

    import click
    import pluggy
    from sqlalchemy import Connection, Engine

    from balsam_core.backends.discovery import EntryPoint
    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import Event
    from balsam_core.plugin_types import DBType, EngineRole
    from balsam_core.transport.base import Transport

OFFICIAL = BACKEND.official
DEFAULT_DB_TYPE = BACKEND.default
LARGEST_SETTINGS = 16 * 1024  # bytes of settings that a plugin may have stored

T = TypeVar("T")


class Backend:
    """A loaded backend: its identity and its hooks, with checked results.

    A hook is called on this plugin alone, but through pluggy, so that wrappers registered by a site still run.
    """

    def __init__(
        self, identity: DBType, entry_point: EntryPoint, module: ModuleType, manager: pluggy.PluginManager
    ) -> None:
        self.identity = identity
        self.package = entry_point.package
        self.version = entry_point.version
        self.provider = entry_point.provider
        self._module = module
        self._manager = manager

    @property
    def served_only(self) -> bool:
        """Whether nobody but its server, where one runs, may open a DB's files."""
        return "served-only" in self.identity.capabilities

    def init_db(self, db: DBDir, options: Mapping[str, str]) -> dict[str, str]:
        """Make the engine's files and return the settings to store; see ``balsam_init_db``."""
        found: Mapping[str, str] = self._call_hook("balsam_init_db", Mapping, db=db, options=options)  # type: ignore[type-abstract]
        settings = dict(found)
        try:
            size = sum(len(text.encode()) for item in settings.items() for text in item)
        except (AttributeError, UnicodeEncodeError):
            raise BackendError(self._broken_message("balsam_init_db", "settings that are not all text")) from None
        if size > LARGEST_SETTINGS:
            raise BackendError(self._broken_message("balsam_init_db", f"settings of {size} bytes"))
        return settings

    def server_policy(self, db: DBDir) -> ServerPolicy:
        """Return whether this DB needs a server that Balsam runs; see ``balsam_server_policy``."""
        if not self.has("balsam_server_policy"):
            return self.identity.server
        return self._call_hook("balsam_server_policy", ServerPolicy, db=db)

    def warnings(self, db: DBDir) -> list[str]:
        """Return what makes this DB less safe than promised; see ``balsam_warnings``."""
        if not self.has("balsam_warnings"):
            return []
        lines = list(self._call_hook("balsam_warnings", Sequence, db=db))  # type: ignore[type-abstract]
        if not all(isinstance(line, str) for line in lines):
            raise BackendError(self._broken_message("balsam_warnings", "lines that are not all text"))
        return lines

    def start_server(self, db: DBDir, host: str, port: int, *, tls: bool = True) -> ServerPlan:
        """Return how to run the server; see ``balsam_start_server``."""
        plan = self._call_hook("balsam_start_server", ServerPlan, db=db, host=host, port=port, tls=tls)
        return replace(plan, is_ready=lambda seconds: self._guarded_call("is_ready", plan.is_ready, seconds))

    def open_transport(self, db: DBDir) -> Transport:
        """Return what runs operations; see ``balsam_open_transport``."""
        from balsam_core.transport.base import Transport
        from balsam_core.transport.native import NativeTransport

        found = self._call_hook("balsam_open_transport", Transport, db=db)  # type: ignore[type-abstract]
        if isinstance(found, NativeTransport):
            found.db = found.db or db
            if self.has("balsam_bulk_insert"):
                found.bulk_insert = self.bulk_insert
        return found

    def create_engine(self, db: DBDir, role: EngineRole) -> Engine:
        """Return an SQLAlchemy engine; see ``balsam_create_engine``."""
        from sqlalchemy import Engine

        return self._call_hook("balsam_create_engine", Engine, db=db, role=role)

    def bulk_insert(
        self, connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Insert many rows; see ``balsam_bulk_insert``. The transport handles the driver's own errors."""
        self._hook_caller("balsam_bulk_insert")(connection=connection, table=table, columns=columns, rows=rows)

    def backup(self, db: DBDir, address: Address | None, target: Path) -> None:
        """Write a backup; see ``balsam_backup``."""
        self._call_hook("balsam_backup", NoneType, db=db, address=address, target=target)

    def restore(self, db: DBDir, address: Address | None, source: Path) -> None:
        """Fill the database from a backup; see ``balsam_restore``."""
        self._call_hook("balsam_restore", NoneType, db=db, address=address, source=source)

    def commands(self, group: click.Group) -> None:
        """Let the plugin add its commands; see ``balsam_commands``."""
        self._call_hook("balsam_commands", NoneType, group=group)

    def job_event(self, events: Sequence[Event]) -> None:
        """Tell the plugin what happened to jobs; see ``balsam_job_event``."""
        self._call_hook("balsam_job_event", NoneType, events=events)

    def has(self, hook: str) -> bool:
        """Say whether the plugin implements an optional hook."""
        callers = self._manager.get_hookcallers(self._module) or []
        return any(caller.name == hook for caller in callers)

    def _call_hook(self, hook: str, expected: type[T], **arguments: object) -> T:
        result = self._guarded_call(hook, self._hook_caller(hook), **arguments)
        if not isinstance(result, expected):
            raise BackendError(self._broken_message(hook, f"{type(result).__name__}, not {expected.__name__}"))
        return result

    def _guarded_call(self, name: str, function: Callable[..., T], *arguments: object, **named: object) -> T:
        """Call a function of the plugin; what it raises, if it is no BalsamError, becomes a BackendError."""
        try:
            return function(*arguments, **named)
        except BalsamError:
            raise
        except BaseException as err:
            if is_ctrl_c(err):
                raise
            raise BackendError(self.failure_message(name, err)) from err

    def failure_message(self, name: str, err: BaseException) -> str:
        """Return the error message for an exception in the plugin: one line."""
        return (
            f"{self.provider} failed in {name}: {describe_exception(err)}; if this is no fault of the machine, tell "
            f"the package's authors"
        )

    def _hook_caller(self, hook: str) -> pluggy.HookCaller:
        """Return the caller of a hook on this plugin alone, and on its wrappers."""
        others = [
            plugin
            for name, plugin in self._manager.list_name_plugin()
            if name.startswith(PREFIX) and plugin is not self._module
        ]
        return self._manager.subset_hook_caller(hook, remove_plugins=others)

    def _broken_message(self, hook: str, what: str) -> str:
        return f"{self.provider} is broken: {hook} returned {what}; upgrade it with: pip install -U {self.package}"


class Registry(InstalledPlugins):
    """The backends of this process.

    Args:
        points: The entry points of the backends; None for those that are installed.

    Attributes:
        manager: pluggy's manager; other plugins that are registered there may wrap the hooks of the backends.
    """

    def __init__(self, points: Sequence[EntryPoint] | None = None) -> None:
        super().__init__(BACKEND, points)
        self.manager = new_manager(BACKEND)
        self._loaded: dict[str, Backend | PluginError] = {}

    def load(self, db_type: str) -> Backend:
        """Return the backend of a db type or of an alias; nothing else is loaded.

        Raises:
            BackendError: It is not installed, broken, incompatible, offered twice, or lacks its driver.
        """
        name = self.installed_name(db_type)
        result = self._load_once(name)
        if isinstance(result, PluginError):
            raise self.error_of(name, result.detail, result.remedy) from result
        return result

    def installed_name(self, name: str) -> str:
        """Return the db type that a user means, by its name or an alias.

        Raises:
            BackendError: It is not installed.
        """
        db_type = canonical(name)
        if db_type in self.entry_points:
            return db_type
        installed = ", ".join(sorted(self.entry_points)) or "none"
        if db_type in OFFICIAL:
            raise BackendError(
                f"the db type {db_type} is not installed (installed: {installed}): pip install {OFFICIAL[db_type]}"
            )
        if names_server(db_type):
            raise BackendError(f"the db type is a URL or the like: name one of {installed}; a URL goes with --url")
        missing = [package for official, package in OFFICIAL.items() if official not in self.entry_points]
        more = f"; to install others: pip install {' '.join(missing)}" if missing else ""
        raise BackendError(f"there is no db type {db_type!a} (installed: {installed}){more}")

    def _load_once(self, name: str) -> Backend | PluginError:
        if name not in self._loaded:
            points = self.entry_points[name]
            try:
                if normalized(points[0].package) != OFFICIAL.get(name):
                    self._refuse_unsafe(name)
                card, module = load_plugin(name, points, self.manager)
                identity = cast("DBType", card)  # as load_plugin has checked
                check_driver(identity, points[0].package, load=False)
                self._loaded[name] = Backend(identity, points[0], module, self.manager)
            except PluginError as err:
                self._loaded[name] = err
        return self._loaded[name]

    def _refuse_unsafe(self, name: str) -> None:
        """Raise PluginError where a plugin can't be loaded in another process.

        Raises:
            PluginError: As :func:`load_plugin`, and where the process ended or the plugin took too long.
            NoResources: It can't be loaded now.
        """
        report = self.look_at([name])[name]
        if report.status != "ok":
            raise PluginError(report.status, report.detail, report.remedy)


def canonical(db_type: str) -> str:
    """Return the canonical name of a db type: lower case, aliases resolved (``sqlite3`` is ``sqlite``)."""
    name = db_type.strip().lower()
    return ALIASES.get(name, name)


@cache
def installed() -> Registry:
    """Return the registry of what is installed; it is read once per process."""
    return Registry()


def load(db_type: str) -> Backend:
    """Return the installed backend of a db type or of an alias; see :meth:`Registry.load`."""
    return installed().load(db_type)
