"""The MPI kinds that plugins offer; of their code nothing runs in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.backends.installed import InstalledPlugins
from balsam_core.backends.kinds import MPI

if TYPE_CHECKING:
    from balsam_core.plugin_types import MPIKind


def installed_names() -> list[str]:
    """Return the names of the installed kinds, whether or not they can be used."""
    return sorted(InstalledPlugins(MPI).entry_points)


def load(name: str) -> MPIKind | None:
    """Return the kind of this name; None where none is installed.

    Raises:
        BackendError: It can't be used.
        NoResources: It can't be looked at now.
    """
    plugins = InstalledPlugins(MPI)
    if name not in plugins.entry_points:
        return None
    report = plugins.look_at([name])[name]
    if report.mpi is None:
        raise plugins.error_of(name, report.detail, report.remedy)
    return report.mpi


def load_all() -> tuple[list[MPIKind], list[str]]:
    """Return the kinds that can be used, by name, and what is wrong with the others, a line each.

    Raises:
        NoResources: They can't be looked at now.
    """
    plugins = InstalledPlugins(MPI)
    reports = plugins.look_at(sorted(plugins.entry_points))
    faults = [
        str(plugins.error_of(name, report.detail, report.remedy))
        for name, report in reports.items()
        if report.mpi is None
    ]
    return sorted((report.mpi for report in reports.values() if report.mpi), key=lambda kind: kind.name), faults
