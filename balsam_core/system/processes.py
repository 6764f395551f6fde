"""Processes that were recorded earlier, recognised beyond doubt: an id alone may belong to another process by now.

A process is the recorded one when the machine, its boot and the namespace of process ids are the same, and the process
with this id started at the same moment. No other process is ever signalled. On Linux all is read from ``/proc``: psutil
costs 4 MB of memory, and knows starts only by the wall clock, which may be set.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from balsam_core.system.shortages import shortage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_LINUX = sys.platform == "linux"
_TICKS = os.sysconf("SC_CLK_TCK")  # the kernel's unit of time, per second
_POLL = 0.02  # seconds between two checks of a process that is not our child
_KILL_TIMEOUT = 5.0  # seconds that a killed process may take to end


class Machine(NamedTuple):
    """Where a process id is valid.

    Attributes:
        node: Host name.
        boot_id: The kernel's id of this boot; empty where it has none.
        pid_namespace: On Linux the namespace of process ids (a container has its own), else 0.
    """

    node: str
    boot_id: str
    pid_namespace: int

    def boot_and_namespace(self) -> str:
        """Return what tells, with the node, where a process id is valid, as one text of at most 64 characters."""
        return f"{self.boot_id[:52]}/{self.pid_namespace}"


@cache
def this_machine() -> Machine:
    """Return where this process runs.

    Raises:
        NoResources: The system can't tell now.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError as err:  # macOS
        _refuse_shortage(err)
        boot_id = ""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError as err:
        _refuse_shortage(err)
        namespace = 0
    return Machine(platform.node()[:255], boot_id[:64], namespace)


def _refuse_shortage(err: OSError) -> None:
    """Raise NoResources where the system can't tell now: a process that can't be looked at is not dead."""
    if lack := shortage(err):
        raise lack from err


def start_of(pid: int) -> float | None:
    """Return when a process of this machine started; None when there is none, or only its zombie.

    In seconds: since the boot on Linux, which setting the clock doesn't change, else since 1970.
    """
    if not _LINUX:
        return _start_by_psutil(pid)
    fields = _read_stat(pid)
    return None if fields is None or fields[0] in {b"Z", b"X"} else int(fields[19]) / _TICKS


def started_at(pid: int) -> float | None:
    """Return when a process of this machine started, seconds since 1970, as psutil does; None without one."""
    start = start_of(pid)
    return start if start is None or not _LINUX else start + _boot_time()


def is_alive(pid: int, start: float) -> bool:
    """Say whether the process of this machine that has this id is the one that started then.

    Where the system hides other users' processes, an id in use counts as that process: nothing proves it dead.
    """
    found = start_of(pid) if pid > 0 else None
    if found is not None:
        return found == start
    if not _LINUX or pid <= 0 or _read_stat(pid) is not None:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return start_of(pid) == start  # else it started, or ended, in between


def is_stopped(pid: int) -> bool:
    """Say whether a process of this machine is stopped, by SIGSTOP or a debugger; on Linux only."""
    fields = _read_stat(pid) if _LINUX else None
    return fields is not None and fields[0] in {b"T", b"t"}


def open_process(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError, OverflowError):  # not Linux, an old kernel, a sandbox, or no such process
        return None


def send_signal(pid: int, start: float, number: int) -> bool:
    """Signal a process of this machine if it is the one that started then; say whether it was."""
    descriptor = open_process(pid) if pid > 0 else None
    try:
        # The descriptor is opened first: its process can't be replaced between the check and the signal.
        if pid <= 0 or start_of(pid) != start:
            return False
        if descriptor is not None:
            signal.pidfd_send_signal(descriptor, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return True


def end_process(pid: int, start: float, signals: Iterable[tuple[int, float]]) -> bool:
    """End a process that is not a child of this one, if it is the one that started then; say whether it is gone.

    The signals are sent in turn, each with the seconds to wait for the exit, and SIGKILL at last.
    """
    for number, seconds in [*signals, (signal.SIGKILL, _KILL_TIMEOUT)]:
        if not send_signal(pid, start, number):
            break
        send_signal(pid, start, signal.SIGCONT)  # a suspended process takes no other signal
        deadline = time.monotonic() + seconds
        while is_alive(pid, start) and time.monotonic() < deadline:
            time.sleep(_POLL)
    return not is_alive(pid, start)


def end_marked(variable: str, value: str) -> bool:
    """Kill all processes of this machine that were started with this value of an environment variable; on Linux only.

    Say whether none was left before that: call it again until it says so. This process is left out.
    """
    pids = [pid for pid in marked(variable, value) if pid != os.getpid()]
    for pid in pids:
        with contextlib.suppress(OSError):  # gone, or somebody else's
            os.kill(pid, signal.SIGKILL)
    return not pids


def marked(variable: str, value: str) -> list[int]:
    """Return ids of the processes that were started with this value of an environment variable; on Linux only."""
    wanted, found = f"{variable}={value}".encode(), []
    for name in os.listdir("/proc") if _LINUX else ():  # noqa: PTH208
        if name.isdigit():
            with contextlib.suppress(OSError):  # gone, or another user's
                if wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
    return found


def descendants(pid: int) -> list[tuple[int, float]]:
    """Return ids and starts of the children of a process, of their children, and so on; on Linux only."""
    starts = ((child, start_of(child)) for child in _tree(pid))
    return [(child, start) for child, start in starts if start is not None]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and its descendants have used, seconds; 0 for one that is gone."""
    if not _LINUX:
        return _cpu_by_psutil(pid)
    ticks = 0
    for one in (pid, *_tree(pid)):
        if (fields := _read_stat(one)) is not None:
            ticks += sum(map(int, fields[11:15]))  # user and system time, of this process and its dead children
    return ticks / _TICKS


def children_of(pid: int) -> list[int]:
    """Return the process ids of a process's children; on Linux only."""
    return _children_finder()(pid)


def _tree(pid: int) -> list[int]:
    """Return the process ids of a process's children, of their children, and so on; on Linux only."""
    find = _children_finder()
    found = find(pid)
    for child in found:
        found += find(child)
    return found


def _children_finder() -> Callable[[int], list[int]]:
    """Return what gives the children of processes, for one look at a tree.

    Not every kernel has the files that tell them. Then all processes are asked once for their parents.
    """
    if _has_children_files():
        return _read_children
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if _LINUX else ():  # noqa: PTH208
        if name.isdigit() and (fields := _read_stat(int(name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(name))
    return lambda pid: list(children.get(pid, ()))


@cache
def _has_children_files() -> bool:
    return Path(f"/proc/self/task/{os.getpid()}/children").exists()


def _read_children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # gone
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            with contextlib.suppress(OSError):  # this thread is gone
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split())
    return found


def _read_stat(pid: int) -> list[bytes] | None:
    """Return the fields of ``/proc/PID/stat`` from the state on; None when no such process is visible.

    Raises:
        NoResources: The system can't tell now.
    """
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError as err:
        _refuse_shortage(err)
        return None
    return data.rpartition(b")")[2].split()  # the name before it may hold anything


def _boot_time() -> float:
    with open("/proc/stat", "rb") as file:  # noqa: PTH123
        return next((float(line.split()[1]) for line in file if line.startswith(b"btime")), 0.0)


def _start_by_psutil(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError):
        return None


def _cpu_by_psutil(pid: int) -> float:
    import psutil

    try:
        process = psutil.Process(pid)
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    except psutil.Error:
        return 0.0
    return sum(one.user + one.system for one in times)
