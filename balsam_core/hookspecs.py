"""The hooks of a Balsam backend: what a plugin module implements.

A backend is a module with these functions, each marked with :data:`hookimpl`, announced by an entry point in the group
``balsam.backends`` whose name is the db type::

    [project.entry-points."balsam.backends"]
    toy = "acme_balsam_toy.backend"

A hook is called only on the plugin that owns the db type of the DB in hand. An implementation may leave out arguments
that it doesn't need. What is raised as a :class:`~balsam_core.errors.BalsamError` reaches the user as it is; anything
else is reported as a fault of the plugin. Plugin authors import from :mod:`balsam_core.plugin` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from balsam_core.address import Address
    from balsam_core.dbdir import DBDir
    from balsam_core.plugin_types import DBType, EngineRole, ServerPlan
    from balsam_core.transport import Transport

__all__ = [
    "PROJECT",
    "BackendModule",
    "balsam_create_engine",
    "balsam_db_type",
    "balsam_init_db",
    "balsam_open_transport",
    "balsam_start_server",
    "hookimpl",
    "hookspec",
]

PROJECT = "balsam"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of the hook that has its name."""


@hookspec(firstresult=True)
def balsam_db_type() -> DBType:  # type: ignore[empty-body]
    """Return what this backend is.

    Called before every other hook and by ``balsam plugins list``, so neither it nor the import of its module may load
    a driver, SQLAlchemy or anything else that takes time.

    Example::

        @hookimpl
        def balsam_db_type() -> DBType:
            return DBType(name="toy", title="Toy", server=ServerPolicy.NONE, plugin_api=1, driver="toydb")
    """


@hookspec(firstresult=True)
def balsam_init_db(db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:  # type: ignore[empty-body]
    """Make the engine's own files in a DB directory, but no tables, and return the settings to remember.

    Called by ``balsam init``, for a new directory and again for each refresh, so it is idempotent. A new directory is
    built aside and renamed afterwards: no file may hold its absolute path. Killed at any moment, it leaves either
    nothing or a finished file: build under another name, then rename.

    Args:
        db: The directory. ``db.settings`` is empty for a new one, else what was returned last time.
        options: From ``--option NAME=VALUE``; the names are among those of :attr:`DBType.options`.

    Returns:
        The settings that ``balsam.toml`` keeps, without secrets. They replace the old ones.

    Raises:
        InvalidInput: An option has a wrong value; nothing was made.
        DBDirError: The files can't be made, or those found are damaged or foreign; they are left as they were.

    Example::

        @hookimpl
        def balsam_init_db(db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:
            atomic_write(db.path / "toy.db", b"")
            return {"durability": options.get("durability", "full")}
    """


@hookspec(firstresult=True)
def balsam_start_server(db: DBDir, host: str, port: int) -> ServerPlan:  # type: ignore[empty-body]
    """Describe the one foreground child that serves this DB; the core starts it, watches it and stops it.

    Never called for ``ServerPolicy.NONE``. Called anew for each start, with another port if the last one was taken.

    Args:
        db: The directory.
        host: Host name or address to listen on.
        port: A port that was free a moment ago.

    Raises:
        BackendError: The server's program is not installed.

    Example::

        @hookimpl
        def balsam_start_server(db: DBDir, host: str, port: int) -> ServerPlan:
            argv = ["toyd", "--data", str(db.path / "toy.db"), "--listen", f"{host}:{port}"]
            return ServerPlan(argv=argv, host=host, port=port, protocol="toy", is_ready=lambda wait: ping(port, wait))
    """


@hookspec(firstresult=True)
def balsam_open_transport(db: DBDir, address: Address | None) -> Transport:  # type: ignore[empty-body]
    """Return what runs operations on this DB.

    Args:
        db: The directory.
        address: The published server, None when none is published. While one is published, the files are never opened
            behind its back.

    Raises:
        ServerNotRunning: The DB can't be reached without a server, and none is published.
        Corrupt: The database's files are damaged or foreign; they are left as they were.
        Unavailable: The database can't be reached.

    Example::

        @hookimpl
        def balsam_open_transport(db: DBDir, address: Address | None) -> Transport:
            return NativeTransport(make_engine(db), is_retryable=is_retryable)
    """


@hookspec(firstresult=True)
def balsam_create_engine(db: DBDir, address: Address | None, role: EngineRole) -> Engine:  # type: ignore[empty-body]
    """Return an SQLAlchemy engine for what operations are not: migration, copy, bulk reading, EXPLAIN.

    A transaction on a connection with the execution option ``balsam_reads=True`` only reads and sees one consistent
    state; any other may write and must hold from its start whatever lock it needs for that.

    Args:
        db: The directory.
        address: The published server, None when none is published.
        role: What the engine is for; ``owner`` may change tables.

    Raises:
        ServerNotRunning: The DB can't be reached without a server, and none is published.
        Corrupt: The database's files are damaged or foreign; they are left as they were.

    Example::

        @hookimpl
        def balsam_create_engine(db: DBDir, address: Address | None, role: EngineRole) -> Engine:
            return sqlalchemy.create_engine("toy://", creator=lambda: toydb.connect(db.path / "toy.db"))
    """


class BackendModule(Protocol):
    """A plugin module, for a static check: ``_: BackendModule = my_module`` under mypy."""

    def balsam_db_type(self) -> DBType:
        """See :func:`balsam_db_type`."""
        ...

    def balsam_init_db(self, db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:
        """See :func:`balsam_init_db`."""
        ...

    def balsam_start_server(self, db: DBDir, host: str, port: int) -> ServerPlan:
        """See :func:`balsam_start_server`."""
        ...

    def balsam_open_transport(self, db: DBDir, address: Address | None) -> Transport:
        """See :func:`balsam_open_transport`."""
        ...

    def balsam_create_engine(self, db: DBDir, address: Address | None, role: EngineRole) -> Engine:
        """See :func:`balsam_create_engine`."""
        ...
