"""Which schema a database has, and whether this program can work with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from balsam_core.errors import SchemaMismatch
from balsam_core.schema import SCHEMA

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["SCHEMA", "VERSION_TABLE", "check", "current"]

VERSION_TABLE = "schema_version"


def current(conn: Connection) -> str | None:
    """Return the database's revision, None where it has none yet."""
    return conn.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608  (a constant)


def check(conn: Connection) -> None:
    """Raise SchemaMismatch unless the database has this program's schema."""
    found = current(conn)
    if found == SCHEMA:
        return
    if found is None or found < SCHEMA:
        msg = f"the database has schema {found or 'none'}, this program needs {SCHEMA}; run: balsam init PATH"
    else:
        msg = f"the database has schema {found}, newer than this program's {SCHEMA}; upgrade balsam-core with pip"
    raise SchemaMismatch(msg)
