"""Child processes: started in sessions of their own, watched without polling, ended with all that they started.

Processes are started by ``posix_spawn`` (no ``preexec_fn``, no fork of this interpreter, 30 % less of this process's
time than ``subprocess.Popen``). It can't change the directory, so this process goes there and back: nothing here may
run beside another thread that uses relative paths. A child's end makes its pidfd readable; where the system has none,
SIGCHLD wakes the loop and the children are asked one by one.

Knows nothing about jobs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: TC003
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Process", "Processes", "ShortageError", "find_program", "is_shortage"]

T = TypeVar("T")

SPARE_DESCRIPTORS = 16  # left to the database, the log and directories

MOST_KNOWN = 1000  # programs whose place is remembered

_OUTPUT = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
_SHORTAGES = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
# Python ignores some, and so does the parent of a launcher that was started with nohup, or with & by a script.
_RESTORED = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


class ShortageError(Exception):
    """This machine can't start another process now; nothing is wrong with the command."""


def is_shortage(err: BaseException | None) -> bool:
    """Whether an error means that this machine has too little of something now."""
    return isinstance(err, OSError) and err.errno in _SHORTAGES


class Process(Generic[T]):
    """A running child.

    Attributes:
        pid: Its process id, which is also the id of its session and process group.
        pidfd: A descriptor that becomes readable when it ends; -1 where the system has none.
        owner: What the caller wanted to find again.
        kill_at: When it gets SIGKILL, by the monotonic clock; None while nobody wants it to end.
    """

    __slots__ = ("kill_at", "owner", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, owner: T) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.owner = owner
        self.kill_at: float | None = None


class Processes(Generic[T]):
    """The children of one launcher."""

    def __init__(self) -> None:
        self.running: dict[int, Process[T]] = {}  # pid -> process
        self._selector = selectors.DefaultSelector()
        self._programs: dict[tuple[str, str], str] = {}
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._home = _open_current_directory()
        self._pidfds = _has_pidfd()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_descriptors = sys.maxsize if limit == resource.RLIM_INFINITY else limit - SPARE_DESCRIPTORS
        self._old_sigchld = None if self._pidfds else signal.signal(signal.SIGCHLD, lambda *_: None)
        _keep_descriptors_private()

    def watch(self, descriptor: int, drain: Callable[[], None]) -> None:
        """Also wake up when this descriptor becomes readable, and have it read.

        On systems without pidfd it must be the one of :func:`signal.set_wakeup_fd`.
        """
        self._selector.register(descriptor, selectors.EVENT_READ, drain)

    def start(
        self, argv: list[str], *, cwd: Path, env: Mapping[str, str], stdout: str, stderr: str, owner: T
    ) -> Process[T]:
        """Start a command in a session of its own, with an empty standard input.

        Args:
            argv: The command's words; the first is searched in the ``PATH`` of ``env``.
            cwd: Its working directory.
            env: Its whole environment.
            stdout: Name of a file in ``cwd`` for its output; emptied if it exists.
            stderr: The same for its errors; may be the same file.
            owner: Kept with the process.

        Raises:
            OSError: The directory, an output file or the program can't be used; the message says which and why.
            ValueError: A word or variable that no program can be given.
            ShortageError: Too many processes or open files, or too little memory.
        """
        opened: list[int] = []
        try:
            _enter(cwd)
            opened.append(_open_output(stdout))
            opened.append(opened[0] if stderr == stdout else _open_output(stderr))
            if self.running and opened[-1] >= self._most_descriptors:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            pid = self._spawn(argv, env, opened)
        except OSError as err:
            if is_shortage(err):
                raise ShortageError(err.strerror) from err
            raise
        finally:
            os.fchdir(self._home)
            for descriptor in set(opened):
                os.close(descriptor)
        pidfd = -1
        if self._pidfds:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError as err:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise ShortageError(err.strerror) from err
        process = self.running[pid] = Process(pid, pidfd, owner)
        if pidfd >= 0:
            self._selector.register(pidfd, selectors.EVENT_READ, process)
        return process

    def _spawn(self, argv: list[str], env: Mapping[str, str], outputs: Sequence[int]) -> int:
        remembered = bool(self._programs)
        program, words = find_program(argv, env, self._programs)
        try:
            return os.posix_spawn(
                program,
                words,
                env,
                setsid=True,
                setsigmask=(),
                setsigdef=_RESTORED,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, self._null, 0),
                    (os.POSIX_SPAWN_DUP2, outputs[0], 1),
                    (os.POSIX_SPAWN_DUP2, outputs[1], 2),
                ],
            )
        except OSError as err:
            if err.errno in _SHORTAGES:
                raise
            if remembered:  # it may have been moved since it was found
                self._programs.clear()
                return self._spawn(argv, env, outputs)
            raise OSError(err.errno, _why_not(program, err)) from err

    def wait(self, timeout: float) -> Iterator[tuple[T, int]]:
        """Wait until a child ends, a watched descriptor wakes us, or time is over; give the ended children.

        Whatever is left of an ended child's process group is killed first: the group's number can't have passed to
        others as long as the child isn't collected.

        Returns:
            The owner and the exit code, negative for a signal, of each child that ended.
        """
        ready = self._selector.select(max(timeout, 0.0))
        ended = [] if self._pidfds else self._ask_all()
        for key, _ in ready:
            if isinstance(key.data, Process):
                ended.append(key.data)
            else:
                key.data()
        for process in ended:
            _signal_group(process.pid, signal.SIGKILL)
            _, status = os.waitpid(process.pid, 0)
            if process.pidfd >= 0:
                self._selector.unregister(process.pidfd)
                os.close(process.pidfd)
            del self.running[process.pid]
            yield process.owner, os.waitstatus_to_exitcode(status)

    def _ask_all(self) -> list[Process[T]]:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return [process for pid, process in self.running.items() if os.waitid(os.P_PID, pid, options)]

    def terminate(self, process: Process[T], *, grace: float) -> None:
        """Ask a process group to end, and kill it after ``grace`` seconds; sooner where it was asked before."""
        kill_at = time.monotonic() + grace
        if process.kill_at is None:
            _signal_group(process.pid, signal.SIGTERM)
            _signal_group(process.pid, signal.SIGCONT)  # a stopped one could not react
        process.kill_at = kill_at if process.kill_at is None else min(process.kill_at, kill_at)
        self.kill_overdue()

    def kill_overdue(self) -> float | None:
        """Kill the groups whose time to end by themselves is over; returns when the next one is due."""
        if not self.running:
            return None
        now = time.monotonic()
        following: float | None = None
        for process in self.running.values():
            if process.kill_at is None:
                continue
            if process.kill_at <= now:
                _signal_group(process.pid, signal.SIGKILL)
                process.kill_at = now + 1.0  # it is dead, unless the kernel is stuck in a system call of its
            following = process.kill_at if following is None else min(following, process.kill_at)
        return following

    def close(self) -> None:
        """Kill what runs and release everything; children that can't die are left to init."""
        for process in self.running.values():
            _signal_group(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 2.0
        while self.running and time.monotonic() < deadline:
            for _ in self.wait(0.1):
                pass
        for process in self.running.values():
            if process.pidfd >= 0:
                os.close(process.pidfd)
        self.running.clear()
        self._selector.close()
        os.close(self._null)
        os.close(self._home)
        if self._old_sigchld is not None:
            signal.signal(signal.SIGCHLD, self._old_sigchld)


def _signal_group(pid: int, number: int) -> None:
    # No such group: all ended. Not permitted: macOS says so where only the uncollected child is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _open_current_directory() -> int:
    options = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(".", options)
    except OSError:  # removed, or ours no more
        return os.open("/", options)


def _enter(directory: Path) -> None:
    try:
        os.chdir(directory)
    except OSError as err:
        raise OSError(err.errno, f"can't enter the working directory {str(directory)!r}: {_words(err)}") from err


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # macOS; kernels before 5.3 and some sandboxes
        return False
    return True


def _keep_descriptors_private() -> None:
    """Close descriptors that our parent left open in us (make's job server, a shell's 3>file) before any job's exec."""
    try:
        numbers = [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208
    except OSError:
        return
    for number in numbers:
        if number > 2:  # noqa: PLR2004  (standard error)
            with contextlib.suppress(OSError):
                os.set_inheritable(number, False)


def _open_output(name: str) -> int:
    try:
        # Not blocking: a pipe without a reader, planted under this name, must not stop the launcher.
        descriptor = os.open(name, _OUTPUT, 0o666)
    except OSError as err:
        if err.errno in _SHORTAGES:
            raise
        why = {errno.ELOOP: "it is a symbolic link", errno.ENXIO: "it is a pipe"}.get(err.errno or 0)
        raise OSError(err.errno, f"can't write {name}: {why or _words(err)}") from err
    os.set_blocking(descriptor, True)
    return descriptor


def find_program(argv: list[str], env: Mapping[str, str], known: dict[tuple[str, str], str]) -> tuple[str, list[str]]:
    """Return the file to run and its words; relative names start at the current directory.

    A Python script that is not executable is run by this Python.

    Args:
        argv: The words of the command.
        env: Where ``PATH`` is.
        known: What earlier searches found, filled by this function.

    Raises:
        OSError: There is no such program.
    """
    name = argv[0]
    if "/" in name:
        if name.endswith(".py") and os.path.isfile(name) and not os.access(name, os.X_OK):  # noqa: PTH113
            return sys.executable, [sys.executable, *argv]
        return name, argv
    places = env.get("PATH", os.defpath)
    found = known.get((name, places))
    if found is None:
        for place in places.split(os.pathsep):
            path = os.path.join(place, name)  # noqa: PTH118  (an empty entry is the current directory)
            if os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113
                if not path.startswith("/"):
                    return path if "/" in path else f"./{path}", argv
                if len(known) >= MOST_KNOWN:
                    known.clear()
                found = known[name, places] = path
                break
        else:
            if name.endswith(".py") and os.path.isfile(name):  # noqa: PTH113
                return sys.executable, [sys.executable, *argv]
            raise OSError(errno.ENOENT, f"can't run {name!r}: there is no such program in PATH")
    return found, argv


def _why_not(program: str, err: OSError) -> str:
    what = f"can't run {program!r}"
    if err.errno == errno.ENOENT and os.path.lexists(program):
        return f"{what}: the interpreter that its first line names is missing"
    if err.errno == errno.ENOEXEC:
        return f"{what}: no program; a script needs a first line such as #!/bin/sh"
    if err.errno == errno.EACCES and os.path.isfile(program):  # noqa: PTH113
        return f"{what}: it is not executable (chmod +x)"
    return f"{what}: {_words(err)}"


def _words(err: OSError) -> str:
    return (err.strerror or str(err)).lower()
