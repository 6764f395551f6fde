"""The kinds of plugins: where each is found, which hooks it has, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003
from typing import NamedTuple

from balsam_core.plugin_types import DBType, MPIKind, PluginCard

ALIASES = {"sqlite3": "sqlite", "postgresql": "postgres", "mariadb": "mysql"}
BUILT_IN_MPI = ("openmpi", "intelmpi", "mpich", "srun", "aprun", "jsrun")
"""The MPI kinds of the core itself."""


class PluginKind(NamedTuple):
    """A kind of plugin.

    Attributes:
        name: What listings call it.
        group: The group of its entry points; their names are the plugins' names, their values modules.
        hookspecs: The module with the specifications of its hooks.
        card_hook: The hook that returns the identity card.
        card: The type of that.
        default: The plugin that is taken when none is named; empty for none.
        official: Plugin -> distribution that is released with the core, and keeps the name.
        reserved: Names that no plugin can have, each with the reason.
    """

    name: str
    group: str
    hookspecs: str
    card_hook: str
    card: type[PluginCard]
    default: str
    official: Mapping[str, str]
    reserved: Mapping[str, str]


BACKEND = PluginKind(
    name="backend",
    group="balsam.backends",
    hookspecs="balsam_core.hookspecs.backend",
    card_hook="balsam_db_type",
    card=DBType,
    default="sqlite",
    official={"sqlite": "balsam-sqlite", "postgres": "balsam-postgres", "mysql": "balsam-mysql"},
    reserved={alias: f"is an alias of {name}" for alias, name in ALIASES.items()},
)
MPI = PluginKind(
    name="mpi",
    group="balsam.mpi",
    hookspecs="balsam_core.hookspecs.mpi",
    card_hook="balsam_mpi_kind",
    card=MPIKind,
    default="",
    official={},
    reserved=dict.fromkeys(BUILT_IN_MPI, "is built in"),
)
KINDS = {kind.name: kind for kind in (BACKEND, MPI)}
