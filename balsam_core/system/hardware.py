"""What this machine lets us use: processors and GPUs."""

from __future__ import annotations

import contextlib
import os
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["GPU_VARIABLES", "gpu_variables", "quota_group", "usable_cores", "visible_gpus"]

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
"""What restricts a program to some GPUs: of NVIDIA, of AMD, of Intel."""

_NO_GPU = {"", "-1", "NoDevFiles", "none", "void"}
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> tuple[int, ...]:
    """Return the numbers of the logical processors that this process may use at the same time.

    These are those of its affinity mask, but no more than its control groups' quota of processor time pays for
    (whole processors, at least one): a container on a large node often has the mask of all and the time of two.
    """
    cores = _mask()
    quota, _ = min(_quotas(), default=(len(cores), None))
    return tuple(cores[: max(1, int(quota))])


def quota_group() -> tuple[str, ...]:
    """Return what identifies the control group whose quota allows less than the affinity mask; empty where none does.

    All processes in it share the time of that many processors, and no others do.
    """
    quota, folder = min(_quotas(), default=(inf, None))
    if folder is None or quota >= len(_mask()):
        return ()
    status = folder.stat()
    return str(status.st_dev), str(status.st_ino)


def _mask() -> list[int]:
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return list(range(os.cpu_count() or 1))


def _quotas() -> Iterator[tuple[float, Path]]:
    """Give the quota of each control group that we are in, in processors, and the group's folder."""
    try:
        lines = _MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / "cpu" if controllers else _CGROUPS
        group = root / path.lstrip("/")
        # Inside a container the path may be the host's; then only the root shows our own limit.
        for folder in {root, group, *group.parents} if group.is_relative_to(root) else {root}:
            if folder.is_relative_to(root):
                with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                    yield _quota(folder, version=1 if controllers else 2), folder


def _quota(folder: Path, *, version: int) -> float:
    """Return a control group's quota in processors. Raises ValueError where it has none."""
    if version == 2:  # noqa: PLR2004
        quota, period = (folder / "cpu.max").read_text().split()  # "max" is no number
    else:
        quota = (folder / "cpu.cfs_quota_us").read_text()
        period = (folder / "cpu.cfs_period_us").read_text()
    if float(quota) <= 0:
        raise ValueError("no limit")
    return float(quota) / float(period)


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the GPUs that programs with this environment may use, as the variables above name them.

    Where a variable is set, a batch system or the user has chosen, and that holds, also for none. Otherwise NVIDIA's
    device files are counted, then AMD's nodes. Intel's are not detected: an integrated one looks the same.
    """
    for variable in GPU_VARIABLES:
        if variable in environment:
            names = [name.strip() for name in environment[variable].split(",")]
            end = next((at for at, name in enumerate(names) if name in _NO_GPU), None)  # what follows is hidden, too
            return tuple(names[:end])
    return tuple(map(str, range(_count_nvidia() or _count_amd())))


def gpu_variables() -> tuple[str, ...]:
    """Return the variables that give a program its GPUs on this machine: all, where its GPUs are unknown.

    AMD's software reads NVIDIA's variable as well, and counts among what its own one leaves: both would hide too much.
    """
    return GPU_VARIABLES[1:] if _count_amd() and not _count_nvidia() else GPU_VARIABLES


def _count_nvidia() -> int:
    return sum(1 for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit())


def _count_amd() -> int:
    count = 0
    for properties in Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties"):
        with contextlib.suppress(OSError, ValueError):
            words = dict(line.split(None, 1) for line in properties.read_text().splitlines() if " " in line)
            count += int(words.get("simd_count", "0")) > 0
    return count
