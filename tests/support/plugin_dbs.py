"""DBs of the official plugins on the databases of a test run: SQLite's files, and databases that ``--url`` names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import sqlalchemy as sa

from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.dbdir import address
from balsam_core.dbdir.directory import DBDir, make_tree
from balsam_core.transport.native import NativeTransport

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_db", "make_db_without_tables", "open_transport"]

SCHEMES = {"postgres": "postgresql", "mysql": "mysql"}


def make_db(path: Path, kind: str, url: str) -> DBDir:
    """Make a DB as ``balsam init`` does.

    Args:
        path: Where it is made.
        kind: Its db type.
        url: SQLAlchemy's URL of the empty database; SQLite's is not used.
    """
    options, password = _options(kind, url)
    return initialise(path, kind, options, password=password).db


def make_db_without_tables(path: Path, kind: str, url: str) -> DBDir:
    """Make what the plugin has to make of a DB; arguments as of :func:`make_db`."""
    path.mkdir()
    make_tree(path)
    options, password = _options(kind, url)
    db = DBDir(path=path, db_type=kind, id=uuid4().hex)
    address.withdraw(db)
    given = options if password is None else {**options, "password": password}
    return replace(db, settings=registry.load(kind).init_db(db, given))


def open_transport(db: DBDir) -> NativeTransport:
    """Return the transport of a plugin that runs all operations in this process, PostgreSQL's or MySQL's."""
    made = registry.load(db.db_type).open_transport(db)
    assert isinstance(made, NativeTransport)
    return made


def _options(kind: str, url: str) -> tuple[dict[str, str], str | None]:
    """Return the plugin's options, and the password."""
    if kind == "sqlite":
        return {}, None
    known = sa.make_url(url)
    return {"url": f"{SCHEMES[kind]}://{known.username}@{known.host}:{known.port}/{known.database}"}, known.password
