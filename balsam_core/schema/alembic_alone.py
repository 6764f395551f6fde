"""Alembic without the plugins that other packages register for it.

While it is imported, Alembic loads those plugins of all installed packages, and has no switch for it: one broken
package that has nothing to do with Balsam would make ``balsam init`` fail.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

__all__ = ["MigrationContext", "MigrationStep", "Operations", "ScriptDirectory"]

_all_entry_points = metadata.entry_points


def _other_entry_points(**wanted: Any) -> Any:  # noqa: ANN401  (as the function that it stands for)
    return metadata.EntryPoints() if wanted.get("group") == "alembic.plugins" else _all_entry_points(**wanted)


metadata.entry_points = _other_entry_points
try:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext, MigrationStep
    from alembic.script import ScriptDirectory
finally:
    metadata.entry_points = _all_entry_points
