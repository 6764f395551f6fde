"""What a backend with a single-writer engine tells the write server: how to open the engine and run the server."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from balsam_core.errors import BackendError
from balsam_core.plugin_types import ServerPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.errors import BalsamError
    from balsam_core.plugin_types import EngineRole


@dataclass(frozen=True, kw_only=True)
class SingleWriter:
    """An embedded engine of one DB directory that allows one writer at a time.

    Attributes:
        open_engine: Returns an SQLAlchemy engine: for the role ``server`` that of the write server, for ``reader`` one
            that only reads, for ``writer`` that of a program that works without a server. The server's begins no
            transactions by itself.
        begin: The statement with which the server begins a transaction that may write.
        is_retryable: Whether a driver's error means that the same transaction may succeed when repeated.
        translate: The plugin's mapping of a driver's error to one of ours, None for an error that it doesn't know.
        is_fatal: Whether after a driver's error nobody knows what was written, or the engine can't be trusted any more.
            The server then ends without answering, and is started again. Without it every failed COMMIT is fatal.
        is_replaced: Whether other files are there than those that the engine of the role ``server`` has opened. Called
            inside each transaction of the server, which then ends, and is started again on those that are there.
        secure: Called inside the server's first transaction: forces to disk what an earlier server, ended by an error
            of the disk, may have left in the system's cache only. Without it, everything counts as on disk.
        version: A statement whose answer changes when another connection has changed the database. Without it a server
            assumes that nobody else writes while it runs.
        shared: Whether other processes of this host may open the engine beside a writer. If not, the server reads as
            well, and ``open_engine`` raises ServerNotRunning for the roles ``reader`` and ``writer``.
        savepoints: Whether it has SAVEPOINT, ROLLBACK TO SAVEPOINT and RELEASE SAVEPOINT; a server that starts tries
            them. If not, each call has a transaction of its own.
    """

    open_engine: Callable[[EngineRole], Engine]
    is_retryable: Callable[[BaseException], bool]
    begin: str = "BEGIN"
    translate: Callable[[BaseException], BalsamError | None] | None = None
    is_fatal: Callable[[BaseException], bool] | None = None
    is_replaced: Callable[[], bool] | None = None
    secure: Callable[[], None] | None = None
    version: str = ""
    shared: bool = True
    savepoints: bool = True


def load_single_writer(reference: str, db: DBDir) -> SingleWriter:
    """Return what ``MODULE:FUNCTION`` makes of a DB directory.

    Raises:
        BackendError: There is no such function, or it returns something else.
    """
    from importlib import import_module

    module, _, name = reference.partition(":")
    try:
        made = getattr(import_module(module), name)(db)
    except (ImportError, AttributeError) as err:
        raise BackendError(f"the write server can't find {reference}: {err}; reinstall the backend's package") from err
    if not isinstance(made, SingleWriter):
        raise BackendError(f"{reference} returned {type(made).__name__}, not SingleWriter; upgrade the backend")
    return made


def write_server_plan(db: DBDir, host: str, port: int, *, engine: str) -> ServerPlan:
    """Return how to run the write server; what ``balsam_start_server`` of a single-writer engine returns.

    Args:
        db: The DB directory.
        host: Where to listen.
        port: Where to listen.
        engine: ``MODULE:FUNCTION``: called with the :class:`~balsam_core.plugin.DBDir` in the server's process, it
            returns the :class:`SingleWriter`.
    """
    from balsam_core.proxy.client.channel import answers
    from balsam_core.proxy.keys import make_keys
    from balsam_core.proxy.protocol import NAME
    from balsam_core.system.network import local_host

    make_keys(db)  # before anyone can ask
    return ServerPlan(
        argv=[
            sys.executable, "-P", "-m", "balsam_core.proxy", str(db.path),
            "--engine", engine, "--host", host, "--port", str(port),
        ],
        host=host,
        port=port,
        protocol=NAME,
        is_ready=partial(answers, db, local_host(host), port),
    )  # fmt: skip
