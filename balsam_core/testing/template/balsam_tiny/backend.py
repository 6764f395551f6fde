"""The hooks. Every Balsam command that uses a tiny DB imports this module, so it imports nothing heavy itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.plugin import DBType, InvalidInput, ServerPolicy, hookimpl, option_value, refuse_while_served

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from balsam_core.plugin import DBDir, EngineRole, ServerPlan, Transport


@hookimpl
def balsam_db_type() -> DBType:
    """Return the identity card."""
    return DBType(
        name="tiny",  # the same word as the entry point's name
        title="Tiny",
        server=ServerPolicy.OPTIONAL,  # it works without a server, and better with the core's write server
        plugin_api=1,  # the contract this was written for: a literal, not the core's constant
        driver="_sqlite3",  # if this module can't be found, `balsam plugins list` says so
        options={"cache": "kilobytes of memory for each connection, 1000 by default"},
    )


@hookimpl
def balsam_init_db(db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:
    """Make the engine's file, without tables; called again for each refresh, with the settings of the last time."""
    from balsam_tiny.engine import make_file

    cache = option_value(db, options, "cache", "1000")
    if not cache.isdecimal():
        raise InvalidInput(f"the option cache is {cache!r}; it must be a number of kilobytes")
    make_file(db)
    return {"cache": cache}


@hookimpl
def balsam_start_server(db: DBDir, host: str, port: int) -> ServerPlan:
    """Run the core's write server on the file: one process that writes for all. It always encrypts (CURVE, not TLS)."""
    from balsam_core.plugin import write_server_plan

    return write_server_plan(db, host, port, engine="balsam_tiny.engine:single_writer")


@hookimpl
def balsam_open_transport(db: DBDir) -> Transport:
    """Use the write server while one is published, else open the file."""
    from balsam_core.plugin import ServedTransport
    from balsam_tiny.engine import single_writer

    return ServedTransport(db, single_writer(db))


@hookimpl
def balsam_create_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an SQLAlchemy engine; while a server is published, only for reading."""
    from balsam_tiny.engine import make_engine

    if role != "reader":
        refuse_while_served(db)
    return make_engine(db, role)
