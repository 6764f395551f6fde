"""The hooks."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from balsam_core.plugin import DBType, ServerPolicy, hookimpl, refuse_while_served

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sqlalchemy import Engine

    from balsam_core.plugin import DBDir, EngineRole, ServerPlan, Transport


@hookimpl
def balsam_db_type() -> DBType:
    """Return the identity card."""
    return DBType(
        name="duckdb",
        title="DuckDB",
        server=ServerPolicy.OPTIONAL,
        plugin_api=1,
        driver="duckdb",
        capabilities=frozenset({"served-only", "plain-paths"}),
    )


@hookimpl
def balsam_init_db(db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:
    """Make the file."""
    from balsam_duckdb.engine import make_file

    make_file(db)
    return {"file": "db.duckdb"}


@hookimpl
def balsam_start_server(db: DBDir, host: str, port: int) -> ServerPlan:
    """Run the core's write server on the file."""
    from balsam_core.plugin import write_server_plan

    return write_server_plan(db, host, port, engine="balsam_duckdb.engine:single_writer")


@hookimpl
def balsam_open_transport(db: DBDir) -> Transport:
    """Use the write server."""
    from balsam_core.plugin import ServedTransport
    from balsam_duckdb.engine import single_writer

    return ServedTransport(db, single_writer(db))


@hookimpl
def balsam_create_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine on the file, which only an owner may open, while no server has it open."""
    from balsam_duckdb.engine import make_engine

    refuse_while_served(db)
    return make_engine(db, role)


@hookimpl
def balsam_backup(db: DBDir, target: Path) -> None:
    """Copy the file, after what is in its log has come into it; nobody else has it open."""
    from balsam_duckdb.engine import checkpoint, file_of

    checkpoint(db)
    shutil.copyfile(file_of(db), target)


@hookimpl
def balsam_restore(db: DBDir, source: Path) -> None:
    """Copy the file back."""
    from balsam_duckdb.engine import file_of

    shutil.copyfile(source, file_of(db))
