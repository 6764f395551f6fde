"""Which schema a database has, and whether this program can work with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, text

from balsam_core.errors import Conflict, SchemaMismatch
from balsam_core.schema import SCHEMA
from balsam_core.schema.tables import meta

if TYPE_CHECKING:
    from sqlalchemy import Connection

VERSION_TABLE = "schema_version"


def current(conn: Connection) -> str | None:
    """Return the database's revision, None where it has none yet."""
    return conn.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608  (a constant)


def check(conn: Connection, db_id: str = "") -> None:
    """Refuse a database that this program, or the DB directory with this id (empty for any), must not work with.

    Raises:
        SchemaMismatch: The database has another schema than this program.
        Conflict: It belongs to another DB directory.
    """
    found = current(conn)
    if found == SCHEMA:
        owner = conn.execute(select(meta.c.value).where(meta.c.name == "db_id")).scalar() if db_id else ""
        if owner != db_id:
            raise Conflict(f"the database belongs to another DB directory now (id {owner}, not {db_id}): use that one")
    elif found is None or found < SCHEMA:
        raise SchemaMismatch(
            f"the database has schema {found or 'none'}, this program needs {SCHEMA}; run: balsam init PATH"
        )
    else:
        raise SchemaMismatch(
            f"the database has schema {found}, newer than this program's {SCHEMA}; upgrade balsam-core with pip"
        )
