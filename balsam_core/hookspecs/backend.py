"""The hooks of a backend: what makes one kind of database work with Balsam.

The entry point's group is ``balsam.backends`` and its name the db type::

    [project.entry-points."balsam.backends"]
    toy = "acme_balsam_toy.backend"

The first five hooks are required; the others, listed in :data:`OPTIONAL`, may be left out. A hook is called only on the
plugin of the DB's type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from balsam_core.hookspecs import hookspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    import click
    from sqlalchemy import Connection, Engine

    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import Event
    from balsam_core.plugin_types import DBType, EngineRole, ServerPlan, ServerPolicy
    from balsam_core.transport.base import Transport

__all__ = [
    "OPTIONAL",
    "BackendModule",
    "balsam_backup",
    "balsam_bulk_insert",
    "balsam_commands",
    "balsam_create_engine",
    "balsam_db_type",
    "balsam_init_db",
    "balsam_job_event",
    "balsam_open_transport",
    "balsam_restore",
    "balsam_server_policy",
    "balsam_start_server",
    "balsam_warnings",
]

OPTIONAL = frozenset(
    {
        "balsam_backup",
        "balsam_bulk_insert",
        "balsam_commands",
        "balsam_job_event",
        "balsam_restore",
        "balsam_server_policy",
        "balsam_warnings",
    }
)
"""Hooks that a backend may leave out."""


@hookspec(firstresult=True)
def balsam_db_type() -> DBType:  # type: ignore[empty-body]
    """Return what this backend is.

    Called before every other hook and by ``balsam plugins list``. So neither this function nor the import of its module
    may load a driver, SQLAlchemy or anything else that takes time.

    Example::

        @hookimpl
        def balsam_db_type() -> DBType:
            return DBType(name="toy", title="Toy", server=ServerPolicy.NONE, plugin_api=1, driver="toydb")
    """


@hookspec(firstresult=True)
def balsam_init_db(db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:  # type: ignore[empty-body]
    """Make the engine's own files in a DB directory, but no tables, and return the settings to store.

    Called by ``balsam init``, for a new directory and again for each refresh. A new directory is built aside and
    renamed when it is complete, so no file may hold its absolute path. A refresh that is killed at any moment must lose
    nothing. Warnings that the plugin logs meanwhile are shown to the user.

    Args:
        db: The directory. ``db.settings`` is empty for a new one, else what was returned last time.
        options: From ``--option NAME=VALUE`` and ``--url URL``; the names are among those of :attr:`DBType.options`.
            There may also be ``password``, where the option ``url`` is known and a password was given by
            ``--password-file``, the variable ``BALSAM_DB_PASSWORD`` or at a prompt; never on the command line.

    Returns:
        The settings that ``balsam.toml`` keeps, without secrets. They replace the old ones.

    Raises:
        InvalidInput: An option has a wrong value; nothing was made.
        DBDirError: The files can't be made, or existing ones are damaged or another program's; those stay unchanged.

    Example::

        @hookimpl
        def balsam_init_db(db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:
            atomic_write(db.path / "toy.db", b"")
            return {"durability": options.get("durability", "full")}
    """


@hookspec(firstresult=True)
def balsam_start_server(  # type: ignore[empty-body]
    db: DBDir,
    host: str,
    port: int,
    tls: bool,  # noqa: FBT001  (hooks are called with keywords)
) -> ServerPlan:
    """Describe the one foreground child that serves this DB; the core starts it, watches it and stops it.

    Never called for ``ServerPolicy.NONE``. Called again for each start, with another port if the last one was taken.
    Where the policy is ``REQUIRED``, ``balsam init`` runs the child, unpublished, to make the tables.

    Args:
        db: The directory.
        host: Host name or address to listen on.
        port: A port that was free a moment ago.
        tls: Whether connections from other hosts must be encrypted; False if the user said ``--no-tls``. The core's own
            server always encrypts.

    Raises:
        BackendError: The server's program is not installed, or can't encrypt.

    Example::

        @hookimpl
        def balsam_start_server(db: DBDir, host: str, port: int) -> ServerPlan:
            argv = ["toyd", "--data", str(db.path / "toy.db"), "--listen", f"{host}:{port}"]
            return ServerPlan(argv=argv, host=host, port=port, protocol="toy", is_ready=lambda wait: ping(port, wait))
    """


@hookspec(firstresult=True)
def balsam_open_transport(db: DBDir) -> Transport:  # type: ignore[empty-body]
    """Return what runs operations on this DB.

    While a server is published (:func:`balsam_core.plugin.published_address`), nobody else may write to the files.

    Args:
        db: The directory.

    Raises:
        ServerNotRunning: The DB can't be reached without a server, and none is published.
        Corrupt: The database's files are damaged or another program's; they stay unchanged.
        Unavailable: The database can't be reached.

    Example::

        @hookimpl
        def balsam_open_transport(db: DBDir) -> Transport:
            return NativeTransport(make_engine(db), db=db, is_retryable=is_retryable)
    """


@hookspec(firstresult=True)
def balsam_create_engine(db: DBDir, role: EngineRole) -> Engine:  # type: ignore[empty-body]
    """Return an SQLAlchemy engine for what operations don't do: migration, copy, bulk reading, EXPLAIN.

    A transaction on a connection with the execution option ``balsam_reads=True`` only reads and sees one consistent
    state. Any other may write, and must hold the lock that it needs for that from its start.

    Args:
        db: The directory.
        role: What the engine is for; ``owner`` may change tables.

    Raises:
        ServerNotRunning: The DB can't be reached without a server, and none is published.
        Corrupt: The database's files are damaged or another program's; they stay unchanged.

    Example::

        @hookimpl
        def balsam_create_engine(db: DBDir, role: EngineRole) -> Engine:
            return sqlalchemy.create_engine("toy://", creator=lambda: toydb.connect(db.path / "toy.db"))
    """


@hookspec(firstresult=True)
def balsam_server_policy(db: DBDir) -> ServerPolicy:  # type: ignore[empty-body]
    """Return whether this one DB is reached through a server that Balsam runs; without the hook, its db type decides.

    A DB that uses a server that somebody else runs (``balsam init --url``) needs none from Balsam: ``NONE``. Then no
    address is ever published, and the backend connects by its settings.

    Args:
        db: The directory.

    Example::

        @hookimpl
        def balsam_server_policy(db: DBDir) -> ServerPolicy:
            return ServerPolicy.NONE if "url" in db.settings else ServerPolicy.REQUIRED
    """


@hookspec(firstresult=True)
def balsam_bulk_insert(
    connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Insert many rows in the fastest way; without the hook, the driver's ``executemany`` is used.

    Args:
        connection: A connection inside a transaction, which stays open.
        table: Name of the table.
        columns: Names of the columns that the rows have values for.
        rows: One sequence of values for each row, as SQLAlchemy would pass them to the driver.

    Raises:
        sqlalchemy.exc.DBAPIError: The database refuses a row, as from ``connection.execute()``. None was inserted.

    Example::

        @hookimpl
        def balsam_bulk_insert(connection: Connection, table: str, columns, rows) -> None:
            connection.connection.driver_connection.load(table, columns, rows)
    """


@hookspec(firstresult=True)
def balsam_backup(db: DBDir, address: Address | None, target: Path) -> None:
    """Write a backup of the database, as it was at one moment, while it is in use: ``balsam backup``.

    With the capability ``served-only`` nobody has the files open meanwhile: a server that runs is stopped for it.

    Args:
        db: The directory.
        address: The published server, None when none is published.
        target: The file to make; its folder exists.

    Raises:
        Unavailable: The database can't be reached, or its server is not running.
        BackendError: The program that makes it is not installed.

    Example::

        @hookimpl
        def balsam_backup(db: DBDir, address: Address | None, target: Path) -> None:
            subprocess.run(["toydump", "--to", target, db.path / "toy.db"], check=True)
    """


@hookspec(firstresult=True)
def balsam_restore(db: DBDir, address: Address | None, source: Path) -> None:
    """Fill the database of a new DB directory, which has no tables, from a backup: ``balsam restore``.

    Args:
        db: The directory.
        address: The server, unpublished, that the core runs meanwhile where one is required; else None.
        source: What ``balsam_backup`` made.

    Raises:
        Corrupt: The file is damaged or no backup.
        BackendError: The program that reads it is not installed.

    Example::

        @hookimpl
        def balsam_restore(db: DBDir, address: Address | None, source: Path) -> None:
            subprocess.run(["toyload", "--from", source, db.path / "toy.db"], check=True)
    """


@hookspec(firstresult=True)
def balsam_commands(group: click.Group) -> None:
    """Add commands to ``balsam TYPE``, where TYPE is the db type. Called only when the user enters that.

    The commands have the options ``--db``, ``-o`` and ``-v``. ``click.pass_obj`` gives a command the session:
    ``session.directory("toy")`` is the chosen DB directory, which must have that db type, ``session.open_db()`` the
    open DB, and ``session.printer()`` writes results in the chosen format. A number that a command returns is the exit
    code. An exception is shown in one line: click's errors, a BalsamError or an OSError as it is, any other as a fault
    of the plugin. A db type with the name of a core command can have no commands.

    Args:
        group: Where the commands are added.

    Example::

        @hookimpl
        def balsam_commands(group: click.Group) -> None:
            @group.command()
            @click.pass_obj
            def vacuum(session) -> None:
                "Give unused space back."
                shrink(session.directory("toy").path / "toy.db")
    """


@hookspec(firstresult=True)
def balsam_job_event(events: Sequence[Event]) -> None:
    """Receive what launchers have recorded about jobs, after the database has acknowledged it.

    Called in the launcher's process, on a daemon thread of its own, so it may take time. Exceptions are logged, once
    for each kind. Each event is delivered at most once, by the launcher that has written it. Events are lost when more
    than 20,000 wait for delivery, when the hook raises, when the launcher is killed, and when it ends and delivering
    the rest takes more than 2 seconds. The history in the database is complete.

    Only what a launcher writes about the jobs that it runs is delivered. Not delivered, though in the history, are:
    what users do (adding, ``kill``, ``retry``), what a job's end does to its children (READY, PARENT_KILLED, FAILED),
    and what happens to the jobs of a launcher that was lost.

    Args:
        events: What happened, oldest first, at most 2,000: :class:`Event` with ``job_id``, ``at`` (when it was
            written, by the database's clock, to about a network round trip), ``transitions`` (the states that the job
            entered, each with the seconds before ``at``), ``message`` and ``attempt``.

    Example::

        @hookimpl
        def balsam_job_event(events: Sequence[Event]) -> None:
            for event in events:
                syslog.syslog(f"job {event.job_id}: {event.transitions[-1][0]}")
    """


@hookspec(firstresult=True)
def balsam_warnings(db: DBDir) -> Sequence[str]:  # type: ignore[empty-body]
    """Return what makes this DB less safe than promised at the moment, one line each, for ``balsam status``.

    For a server that somebody else runs, for instance: that it doesn't wait for its replicas. ``balsam init`` shows
    what ``balsam_init_db`` logs, so a plugin logs the same lines there. What the plugin may not see isn't told.

    Args:
        db: The directory.

    Raises:
        Unavailable: The database can't be reached.

    Example::

        @hookimpl
        def balsam_warnings(db: DBDir) -> Sequence[str]:
            return ["the disk is full but for 1 %"] if is_nearly_full(db.path) else []
    """


class BackendModule(Protocol):
    """A plugin module, without optional hooks, for a static check: ``_: BackendModule = my_module`` under mypy."""

    def balsam_db_type(self) -> DBType:
        """See :func:`balsam_db_type`."""
        ...

    def balsam_init_db(self, db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:
        """See :func:`balsam_init_db`."""
        ...

    def balsam_start_server(
        self,
        db: DBDir,
        host: str,
        port: int,
        tls: bool,  # noqa: FBT001  (the hook's own order)
    ) -> ServerPlan:
        """See :func:`balsam_start_server`."""
        ...

    def balsam_open_transport(self, db: DBDir) -> Transport:
        """See :func:`balsam_open_transport`."""
        ...

    def balsam_create_engine(self, db: DBDir, role: EngineRole) -> Engine:
        """See :func:`balsam_create_engine`."""
        ...
