"""SQLite backend of Balsam: one file, no server needed. The hooks are in :mod:`balsam_sqlite.backend`."""

from __future__ import annotations

__version__ = "0.1.0"
