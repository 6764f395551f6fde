"""Balsam, the ensemble-job database.

``open_db()`` returns a :class:`~balsam_core.client.database.Database`; the tutorial in ``docs/`` shows the rest.
The names are imported when first used, so that importing the package itself is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.version import __version__

if TYPE_CHECKING:
    from balsam_core.client.database import Database, current_job, open_db
    from balsam_core.errors import BalsamError
    from balsam_core.model.app import App
    from balsam_core.model.job import Job
    from balsam_core.model.states import State

__all__ = ["App", "BalsamError", "Database", "Job", "State", "__version__", "current_job", "open_db"]

_MODULES = {
    "App": "balsam_core.model.app",
    "BalsamError": "balsam_core.errors",
    "Database": "balsam_core.client.database",
    "Job": "balsam_core.model.job",
    "State": "balsam_core.model.states",
    "current_job": "balsam_core.client.database",
    "open_db": "balsam_core.client.database",
}


def __getattr__(name: str) -> object:
    try:
        module = _MODULES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
