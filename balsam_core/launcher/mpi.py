"""How jobs of several ranks start: the MPI program of this machine, and its command line.

Plugins add kinds to those that are built in. Each kind is known by its template. The words in braces are filled for
each job: ``{ranks}`` in all, ``{ranks_per_node}``, ``{nodes}``, ``{threads_per_rank}``, ``{threads_per_core}``,
``{gpus_per_rank}``. The job's own command line follows. Where a program would choose processors by itself, the template
forbids it: two runs on one node would get the same ones. The job's affinity mask holds for its ranks, and a rank binds
itself to processors of its own where it is to have some: the programs number processors each in its own way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from balsam_core.backends import mpi as plugins
from balsam_core.errors import SettingsError
from balsam_core.launcher import bind_rank
from balsam_core.model.command import check_ranks_template, split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from balsam_core.model.job import Job
    from balsam_core.plugin_types import MPIKind

__all__ = ["KINDS", "MPI", "find_mpi"]

DETECTION_TIMEOUT = 10.0  # seconds that an MPI program may take to tell its version


@dataclass(frozen=True, kw_only=True)
class MPI:
    """One way to start the ranks of a job.

    Attributes:
        name: What ``--mpi`` and settings call it.
        template: The words that stand before the job's command line.
        versions: Texts of which ``--version`` prints one if the program is of this kind; none where the name tells.
        environment: Variables that its runs get, where the job doesn't set them.
        local_rank: The variable in which a rank finds its number on its node; empty where the program, or the user's
            command line, binds ranks.
    """

    name: str
    template: tuple[str, ...]
    versions: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    local_rank: str = ""

    def wrap(self, argv: list[str], job: Job, cores: Sequence[Sequence[int]] = ()) -> list[str]:
        """Return the command line that runs ``argv`` on all ranks of a job.

        Args:
            argv: The command line of one rank.
            job: The job.
            cores: The processors of each rank; none to leave them together.
        """
        if cores and self.local_rank:
            lists = ":".join(",".join(map(str, one)) for one in cores)
            argv = [sys.executable, "-I", "-S", bind_rank.__file__, self.local_rank, lists, *argv]
        values = {
            "ranks": job.num_nodes * job.ranks_per_node,
            "ranks_per_node": job.ranks_per_node,
            "nodes": job.num_nodes,
            "threads_per_rank": job.threads_per_rank,
            "threads_per_core": job.threads_per_core,
            "gpus_per_rank": f"{job.gpus_per_rank:g}",
        }
        return [*(word.format_map(values) for word in self.template), *argv]


KINDS = {
    kind.name: kind
    for kind in (
        MPI(
            name="openmpi",
            # The launcher counts the processors; Open MPI would count its own slots, too, and refuse.
            template=("mpirun", "-n", "{ranks}", "--bind-to", "none", "--oversubscribe"),
            versions=("Open MPI", "OpenRTE", "PRRTE"),
            environment={"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
            local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        ),
        MPI(
            name="intelmpi",
            template=("mpirun", "-n", "{ranks}"),
            versions=("Intel(R) MPI",),
            environment={"I_MPI_PIN": "off"},
            local_rank="MPI_LOCALRANKID",
        ),
        MPI(
            name="mpich",
            template=("mpiexec.hydra", "-n", "{ranks}", "-bind-to", "none"),
            versions=("HYDRA",),
            local_rank="MPI_LOCALRANKID",
        ),
        MPI(
            name="srun",
            template=(
                "srun", "--exact", "--nodes={nodes}", "--ntasks={ranks}", "--ntasks-per-node={ranks_per_node}",
                "--cpus-per-task={threads_per_rank}",
            ),
        ),
        MPI(
            name="aprun",
            template=(
                "aprun", "-n", "{ranks}", "-N", "{ranks_per_node}", "-d", "{threads_per_rank}",
                "-j", "{threads_per_core}",
            ),
        ),
        MPI(
            name="jsrun",
            template=("jsrun", "-n", "{ranks}", "-a", "1", "-c", "{threads_per_rank}", "-g", "{gpus_per_rank}"),
        ),
    )
}  # fmt: skip
"""The kinds that are built in, in the order of their detection."""


def find_mpi(wish: str = "", warn: Callable[[str], None] = lambda _line: None) -> MPI | None:
    """Return how this machine starts MPI jobs; None where it has no MPI.

    Args:
        wish: A kind, the path of its program, or a template; empty to search. First comes the kind of a plugin that
            says so, then ``mpirun`` and ``mpiexec`` of a built-in kind, then ``aprun``, ``jsrun`` and, inside a Slurm
            job, ``srun``.
        warn: Told a line for each plugin that can't be used, in a search.

    Raises:
        SettingsError: What was wished is not there, or is no template.
        BackendError: The plugin of what was wished can't be used.
        NoResources: The plugins can't be looked at now.
    """
    if not wish.strip():
        return _detect_plugin(warn) or _detect()
    words = split(wish, what="mpi")
    if len(words) > 1:
        return _custom(words)
    if kind := KINDS.get(wish):
        return _check_program(kind, wish)
    if card := plugins.load(wish):
        if shutil.which(card.template[0]) is None:
            raise SettingsError(f"mpi: there is no program of {wish} in PATH ({card.template[0]})")
        return _of_plugin(card)
    found = _identify(wish)
    if found is None:
        known = ", ".join([*KINDS, *plugins.installed_names()])
        raise SettingsError(
            f"mpi: {wish!r} is none of {known}, nor a program of Open MPI, MPICH or Intel MPI, nor a command line such "
            "as 'mpirun -n {ranks}'"
        )
    return found


def _detect_plugin(warn: Callable[[str], None]) -> MPI | None:
    cards, faults = plugins.load_all()
    for line in faults:
        warn(line)
    return next(
        (_of_plugin(card) for card in cards if card.detected_by in os.environ and shutil.which(card.template[0])), None
    )


def _of_plugin(card: MPIKind) -> MPI:
    return MPI(name=card.name, template=card.template, environment=card.environment)


def _detect() -> MPI | None:
    for program in ("mpirun", "mpiexec", "mpiexec.hydra"):
        if found := _identify(program):
            return found
    for name in ("aprun", "jsrun", *(["srun"] if "SLURM_JOB_ID" in os.environ else [])):
        if shutil.which(name):
            return KINDS[name]
    return None


def _check_program(kind: MPI, wish: str) -> MPI:
    programs = (
        ("mpirun", "mpiexec", f"mpirun.{wish}", f"mpiexec.{wish}", kind.template[0]) if kind.versions else (wish,)
    )
    for program in programs:
        if not kind.versions and shutil.which(program):
            return kind
        if kind.versions and (found := _identify(program)) and found.name == kind.name:
            return found
    raise SettingsError(f"mpi: there is no program of {wish} in PATH ({', '.join(dict.fromkeys(programs))})")


def _identify(program: str) -> MPI | None:
    """Return the kind of an MPI program by its version; None where it is none, or doesn't work."""
    path = shutil.which(program)
    if path is None:
        return None
    name = os.path.basename(path)  # noqa: PTH119
    if name in KINDS:
        return _with_program(KINDS[name], program)
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DETECTION_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = done.stdout.decode(errors="replace")
    kind = next((one for one in KINDS.values() if any(version in text for version in one.versions)), None)
    return None if kind is None or done.returncode else _with_program(kind, program)


def _with_program(kind: MPI, program: str) -> MPI:
    return replace(kind, template=(program, *kind.template[1:]))


def _custom(words: list[str]) -> MPI:
    try:
        check_ranks_template(words)
    except ValueError as err:
        raise SettingsError(f"mpi: {err}") from None
    if shutil.which(words[0]) is None:
        raise SettingsError(f"mpi: there is no program {words[0]!r}")
    kind = _identify(words[0])
    return MPI(name=words[0], template=tuple(words), environment=kind.environment if kind else {})
