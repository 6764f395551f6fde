"""What processes use: memory, descriptors, processor time; of one process, or of it and its descendants together."""

from __future__ import annotations

import contextlib
import resource
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass
class Usage:
    """At one moment, added up over the processes.

    Attributes:
        rss: Resident memory, bytes; pages that processes share count for each of them.
        pss: The same, shared pages counted once; what a set of processes really takes.
        fds: Open descriptors.
        threads: Threads.
        cpu: Seconds of processor time until now, of living processes.
        processes: How many there are.
        at: ``time.monotonic()`` of the look.
    """

    rss: int = 0
    pss: int = 0
    fds: int = 0
    threads: int = 0
    cpu: float = 0.0
    processes: int = 0
    at: float = 0.0

    def load_since(self, earlier: Usage) -> float:
        """Return which part of one core was used since an earlier look: 0.005 is half a percent."""
        return (self.cpu - earlier.cpu) / (self.at - earlier.at)


def usage(*pids: int, tree: bool = False) -> Usage:
    """Look at processes; those that are gone count nothing.

    Args:
        pids: Their numbers.
        tree: Whether descendants count too.
    """
    processes: set[psutil.Process] = set()
    for pid in pids:
        try:
            process = psutil.Process(pid)
            processes.add(process)
            processes |= set(process.children(recursive=True)) if tree else set()
        except psutil.NoSuchProcess:
            continue
    total = Usage(at=time.monotonic())
    for process in processes:
        try:
            with process.oneshot():
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                memory, times = process.memory_full_info(), process.cpu_times()
                fds, threads = process.num_fds(), process.num_threads()
        except psutil.NoSuchProcess:
            continue
        total.rss += memory.rss
        total.pss += memory.pss
        total.fds += fds
        total.threads += threads
        total.cpu += times.user + times.system
        total.processes += 1
    return total


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_end(pids: Iterable[int], *, seconds: float = 20) -> None:
    """Wait until none of these processes runs."""
    pids = list(pids)
    wait_until(lambda: not any(map(is_alive, pids)), f"the end of the processes {pids}", seconds=seconds)


def take_descriptors(process: psutil.Process) -> Callable[[], None] | None:
    """Let a process open nothing more; returns what gives it back, and to the children that it has got."""
    try:
        _, hard = before = process.rlimit(resource.RLIMIT_NOFILE)
        used = {int(file.name) for file in Path(f"/proc/{process.pid}/fd").iterdir()}
        unused = (number for number in count() if number not in used)
        process.rlimit(resource.RLIMIT_NOFILE, (next(unused), hard))
    except (psutil.NoSuchProcess, FileNotFoundError, ValueError):
        return None

    def give_back() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in [process, *process.children(recursive=True)]:
                one.rlimit(resource.RLIMIT_NOFILE, before)

    return give_back
