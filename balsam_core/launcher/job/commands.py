"""The command lines and the environment of a job's processes."""

from __future__ import annotations

import os
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from balsam_core.errors import InvalidInput
from balsam_core.launcher.job.outputs import write_parent_ids
from balsam_core.model.command import fill_known, fill_template, split
from balsam_core.model.cores import parse_cores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.launcher.mpi import MPI
    from balsam_core.launcher.placement import Place
    from balsam_core.model.app import App
    from balsam_core.model.job import Job

_JOB_VARIABLES = (
    "BALSAM_JOB_ID",
    "BALSAM_PARENT_IDS",
    "BALSAM_PARENT_IDS_FILE",
    "BALSAM_JOB_ERROR",
    "BALSAM_JOB_TIMEOUT",
)


def job_argv(job: Job, app: App | None) -> list[str]:
    """Return the words of the job's command line.

    Raises:
        InvalidInput: A quotation is open, a parameter is missing, or there is no command.
    """
    if job.app:
        what = f"app {job.app!r}"
        argv = _filled_template(job, _require_app(job, app).executable, what) + _filled_template(job, job.args, what)
    else:
        argv = _filled_own(job, job.command, "command") + _filled_own(job, job.args, "args")
    if not argv or not argv[0]:
        raise InvalidInput("the command line is empty")
    return argv


def hook_argv(job: Job, app: App | None, hook: str) -> list[str]:
    """Return the words of the job's ``preprocess`` or ``postprocess``, its own or the app's; empty for none."""
    if own := getattr(job, hook):
        return _filled_own(job, own, hook)
    if not job.app:
        return []
    return _filled_template(job, getattr(_require_app(job, app), hook), f"{hook} of app {job.app!r}")


def _require_app(job: Job, app: App | None) -> App:
    if app is None:
        raise InvalidInput(f"there is no app {job.app!r}")
    return app


def _filled_template(job: Job, text: str, what: str) -> list[str]:
    return fill_template(_split_words(text, what), job.parameters, what=what)


def _filled_own(job: Job, text: str, what: str) -> list[str]:
    return fill_known(_split_words(text, what), job.parameters)


_SPECIAL = frozenset("'\"\\") | {chr(c) for c in range(32) if chr(c) not in " \t\r\n"}


def _split_words(text: str, what: str) -> list[str]:
    # shlex takes 40 us for a short line; most command lines hold nothing that it treats specially.
    if text.isascii() and not _SPECIAL.intersection(text):
        return text.split()
    return split(text, what=what)


def base_environment(directory: DBDir, launcher_id: int) -> dict[str, str]:
    """Return the environment that all jobs share: the launcher's own, and which database it is."""
    base = {name: value for name, value in os.environ.items() if name not in _JOB_VARIABLES}
    base["BALSAM_DB_PATH"] = str(directory.path)
    base["BALSAM_LAUNCHER_ID"] = str(launcher_id)
    return base


LONGEST_PARENT_IDS = 100_000  # bytes in a variable; the system allows 131,072 with its name


def job_environment(
    base: dict[str, str], job: Job, app: App | None, workdir: Path, place: Place | None = None
) -> dict[str, str]:
    """Return a job's own variables, for its processes: the job's override the app's, these the shared ones of ``base``.

    ``OMP_NUM_THREADS`` tells OpenMP programs the job's threads, where app and job don't set it. The number 1, which is
    the default of jobs, leaves what the launcher got from its own environment. More ids of parents than a variable can
    hold are in a file instead, and ``BALSAM_PARENT_IDS`` is not set.

    Raises:
        OSError: That file can't be written.
    """
    own = {"BALSAM_JOB_ID": str(job.id), "BALSAM_PARENT_IDS": " ".join(map(str, job.parents))}
    if len(own["BALSAM_PARENT_IDS"]) > LONGEST_PARENT_IDS:
        del own["BALSAM_PARENT_IDS"]
        own["BALSAM_PARENT_IDS_FILE"] = str(write_parent_ids(job, workdir))
    env = {}
    if job.threads_per_rank > 1 or "OMP_NUM_THREADS" not in base:
        env["OMP_NUM_THREADS"] = str(job.threads_per_rank)
    if place is not None and place.gpus:
        env |= dict.fromkeys(place.gpu_variables, ",".join(place.gpus))
    return {**env, **(app.environ if app else {}), **job.environ, **own}


def bound_cores(job: Job, place: Place | None) -> tuple[int, ...]:
    """Return the processors that a job's processes are bound to; empty for no binding."""
    if job.cpu_affinity in {"", "none"} or place is None:
        return ()
    return place.cores if job.cpu_affinity == "depth" else parse_cores(job.cpu_affinity)


def cores_of_ranks(job: Job, place: Place | None) -> list[tuple[int, ...]]:
    """Return the processors of each rank, where each is bound to its own; else none."""
    if job.cpu_affinity != "depth" or place is None or len(place.cores) % job.ranks_per_node:
        return []
    depth = len(place.cores) // job.ranks_per_node
    return [place.cores[at : at + depth] for at in range(0, len(place.cores), depth)]


@contextmanager
def ranks_started(
    job: Job, argv: list[str], env: dict[str, str], base: dict[str, str], mpi: MPI | None, place: Place | None = None
) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Give the command line and the variables that start all ranks of a job; as they are where it has one rank.

    MPI programs keep sockets and shared memory below ``TMPDIR``, and those of one user get in each other's way there:
    each job has a directory of its own while it runs.

    Raises:
        InvalidInput: The job has several ranks, and there is no MPI.
    """
    if job.num_nodes * job.ranks_per_node == 1:
        yield argv, env
        return
    if mpi is None:
        raise InvalidInput("this launcher has no MPI to start its ranks")
    unset = {name: value for name, value in mpi.environment.items() if name not in base}
    where = env.get("TMPDIR", base.get("TMPDIR"))
    with TemporaryDirectory(prefix="balsam-", dir=where, ignore_cleanup_errors=True) as folder:
        yield mpi.wrap(argv, job, cores_of_ranks(job, place)), {**unset, **env, "TMPDIR": folder}
