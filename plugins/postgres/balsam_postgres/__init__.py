"""PostgreSQL backend of Balsam: a server of the DB's own. The hooks are in :mod:`balsam_postgres.backend`."""

from __future__ import annotations

__version__ = "0.1.0"
