"""Alembic without the plugins that other packages announce for it.

While it is imported, Alembic reads the metadata of all installed packages and loads those plugins: one broken package,
which need not have to do with databases, would make ``balsam init`` fail.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

__all__ = ["MigrationContext", "Operations", "ScriptDirectory"]

_all_entry_points = metadata.entry_points


def _other_entry_points(**wanted: Any) -> Any:  # noqa: ANN401  (as the function that it stands for)
    return metadata.EntryPoints() if wanted.get("group") == "alembic.plugins" else _all_entry_points(**wanted)


metadata.entry_points = _other_entry_points
try:
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory
finally:
    metadata.entry_points = _all_entry_points
