"""The hook of an MPI kind: a way to start the ranks of a job, such as a site's own program.

The entry point's group is ``balsam.mpi`` and its name what users give to ``--mpi``::

    [project.entry-points."balsam.mpi"]
    ibrun = "acme_balsam_ibrun"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.hookspecs import hookspec

if TYPE_CHECKING:
    from balsam_core.plugin_types import MPIKind

__all__ = ["OPTIONAL", "balsam_mpi_kind"]

OPTIONAL: frozenset[str] = frozenset()
"""Hooks that a plugin of this kind may leave out."""


@hookspec(firstresult=True)
def balsam_mpi_kind() -> MPIKind:  # type: ignore[empty-body]
    """Return how the ranks of a job are started.

    It is called in a process of its own, and the answer is kept until a file of the plugin changes. A launcher uses the
    answer and runs no code of the plugin. So nothing in it may depend on the machine or the environment.

    Example::

        @hookimpl
        def balsam_mpi_kind() -> MPIKind:
            return MPIKind(
                name="ibrun",
                title="TACC ibrun",
                plugin_api=1,
                template=("ibrun", "-n", "{ranks}"),
                detected_by="TACC_SYSTEM",
            )
    """
