"""Child processes: started in their own sessions, watched without polling, ended with their whole process group.

Processes are started by ``posix_spawn``: no ``preexec_fn``, no fork of this interpreter, 30 % less CPU time here than
``subprocess.Popen``. It can't set the child's directory, so this process changes its own and changes back: no other
thread may use relative paths meanwhile. A child's end makes its pidfd readable; where the system has no pidfd, SIGCHLD
wakes the loop, which then polls each child.

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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from balsam_core.launcher.programs import explain_failure, find_program
from balsam_core.system.files import reason

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

SPARE_DESCRIPTORS = 16  # left to the database, the log and directories

_OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
_SHORTAGE_ERRORS = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
# Python ignores some, and so does the parent of a launcher that was started with nohup, or with & by a script.
_DEFAULT_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


class ShortageError(Exception):
    """This machine can't start another process now; nothing is wrong with the command."""


def is_shortage(err: BaseException | None) -> bool:
    """Whether an error means that this machine is out of processes, memory or descriptors for now."""
    return isinstance(err, OSError) and err.errno in _SHORTAGE_ERRORS


@dataclass(slots=True, eq=False)
class Process(Generic[T]):
    """A running child.

    Attributes:
        pid: Its process id, which is also the id of its session and process group.
        pidfd: A descriptor that becomes readable when it ends; -1 where the system has none.
        owner: The caller's object for this process.
        kill_at: When it gets SIGKILL, by the monotonic clock; None while it was not asked to end.
    """

    pid: int
    pidfd: int
    owner: T
    kill_at: float | None = None


class Processes(Generic[T]):
    """The children of one launcher."""

    def __init__(self) -> None:
        self.running: dict[int, Process[T]] = {}  # pid -> process
        self._selector = selectors.DefaultSelector()
        self._found_programs: dict[tuple[str, str], str] = {}
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._own_directory = _open_current_directory()
        self._has_pidfd = _has_pidfd()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_descriptors = sys.maxsize if limit == resource.RLIM_INFINITY else limit - SPARE_DESCRIPTORS
        self._old_sigchld = None if self._has_pidfd else signal.signal(signal.SIGCHLD, lambda *_: None)
        _keep_descriptors_private()

    def watch(self, descriptor: int, drain: Callable[[], None]) -> None:
        """Also return from :meth:`wait` when this descriptor becomes readable; ``drain`` must read it empty.

        On systems without pidfd it must be the one of :func:`signal.set_wakeup_fd`.
        """
        self._selector.register(descriptor, selectors.EVENT_READ, drain)

    def start(
        self,
        argv: list[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: str,
        stderr: str,
        owner: T,
        cores: Sequence[int] = (),
    ) -> Process[T]:
        """Start a command in its own session, with an empty standard input.

        Args:
            argv: The command line; its first word is searched in the ``PATH`` of ``env``.
            cwd: Its working directory.
            env: Its whole environment.
            stdout: Name of a file in ``cwd`` for its output; emptied if it exists.
            stderr: The same for its errors; may be the same file.
            owner: Kept with the process.
            cores: Numbers of the processors that it is bound to; empty for those of this process.

        Raises:
            OSError: The directory, an output file or the program can't be used; the message says which and why.
            ValueError: A word or a variable holds a NUL character.
            ShortageError: Too many processes or open files, or too little memory.
        """
        opened: list[int] = []
        try:
            _change_directory(cwd)
            opened.append(_open_output(stdout))
            opened.append(opened[0] if stderr == stdout else _open_output(stderr))
            if self.running and opened[-1] >= self._most_descriptors:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            with _affinity(cores):
                pid = self._spawn_process(argv, env, opened)
        except OSError as err:
            if is_shortage(err):
                raise ShortageError(err.strerror) from err
            raise
        finally:
            os.fchdir(self._own_directory)
            for descriptor in set(opened):
                os.close(descriptor)
        pidfd = -1
        if self._has_pidfd:
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

    def _spawn_process(self, argv: list[str], env: Mapping[str, str], outputs: Sequence[int]) -> int:
        searched_before = bool(self._found_programs)
        program, full_argv = find_program(argv, env, self._found_programs)
        try:
            return os.posix_spawn(
                program,
                full_argv,
                env,
                setsid=True,
                setsigmask=(),
                setsigdef=_DEFAULT_SIGNALS,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, self._null, 0),
                    (os.POSIX_SPAWN_DUP2, outputs[0], 1),
                    (os.POSIX_SPAWN_DUP2, outputs[1], 2),
                ],
            )
        except OSError as err:
            if err.errno in _SHORTAGE_ERRORS:
                raise
            if searched_before:  # it may have been moved since it was found
                self._found_programs.clear()
                return self._spawn_process(argv, env, outputs)
            raise OSError(err.errno, explain_failure(program, err)) from err

    def wait(self, timeout: float) -> Iterator[tuple[T, int]]:
        """Wait until a child ends, a watched descriptor is readable, or time is over; give the ended children.

        What is left of an ended child's process group is killed before the child is collected: until then no other
        group can have its number.

        Returns:
            The owner and the exit code, negative for a signal, of each child that ended.
        """
        ready = self._selector.select(max(timeout, 0.0))
        ended = [] if self._has_pidfd else self._poll_all()
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

    def _poll_all(self) -> list[Process[T]]:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return [process for pid, process in self.running.items() if os.waitid(os.P_PID, pid, options)]

    def terminate(self, process: Process[T], *, grace: float) -> None:
        """Ask a process group to end, and kill it after ``grace`` seconds; a second request can only shorten that."""
        kill_at = time.monotonic() + grace
        if process.kill_at is None:
            _signal_group(process.pid, signal.SIGTERM)
            _signal_group(process.pid, signal.SIGCONT)  # a stopped one could not react
        process.kill_at = kill_at if process.kill_at is None else min(process.kill_at, kill_at)
        self.kill_overdue()

    def kill_overdue(self) -> float | None:
        """Kill the groups whose grace is over; returns when the next one is due."""
        if not self.running:
            return None
        now = time.monotonic()
        next_at: float | None = None
        for process in self.running.values():
            if process.kill_at is None:
                continue
            if process.kill_at <= now:
                _signal_group(process.pid, signal.SIGKILL)
                process.kill_at = now + 1.0  # again, should it hang in a system call
            next_at = process.kill_at if next_at is None else min(next_at, process.kill_at)
        return next_at

    def close(self, *, grace: float = 0.0) -> bool:
        """End all children, kill them after ``grace`` seconds, and release everything.

        Returns:
            Whether all have ended; a child that hangs in the kernel is left to init.
        """
        for process in list(self.running.values()):
            self.terminate(process, grace=grace)
        deadline = time.monotonic() + grace + 2.0
        while self.running and time.monotonic() < deadline:
            self.kill_overdue()
            for _ in self.wait(0.1):
                pass
        all_ended = not self.running
        for process in self.running.values():
            if process.pidfd >= 0:
                os.close(process.pidfd)
        self.running.clear()
        self._selector.close()
        os.close(self._null)
        os.close(self._own_directory)
        if self._old_sigchld is not None:
            signal.signal(signal.SIGCHLD, self._old_sigchld)
        return all_ended


@contextlib.contextmanager
def _affinity(cores: Sequence[int]) -> Iterator[None]:
    """Bind this thread, and so what it starts meanwhile, to some processors."""
    if not cores:
        yield
        return
    own = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
    except OSError as err:
        raise OSError(err.errno, f"can't bind to the processors {','.join(map(str, cores))}: {reason(err)}") from err
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def _signal_group(pid: int, number: int) -> None:
    # No such group: all ended. Not permitted: what macOS says where only the uncollected child is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _open_current_directory() -> int:
    options = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(".", options)
    except OSError:  # removed, or no longer accessible
        return os.open("/", options)


def _change_directory(directory: Path) -> None:
    try:
        os.chdir(directory)
    except OSError as err:
        raise OSError(err.errno, f"can't enter the working directory {str(directory)!r}: {reason(err)}") from err


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # macOS; kernels before 5.3 and some sandboxes
        return False
    return True


def _keep_descriptors_private() -> None:
    """Keep descriptors that our parent left open (make's job server, a shell's 3>file) from being inherited by jobs."""
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
        # Not blocking: a pipe without a reader under this name must not stop the launcher.
        descriptor = os.open(name, _OUTPUT_FLAGS, 0o666)
    except OSError as err:
        if err.errno in _SHORTAGE_ERRORS:
            raise
        why = {errno.ELOOP: "it is a symbolic link", errno.ENXIO: "it is a pipe"}.get(err.errno or 0)
        raise OSError(err.errno, f"can't write {name}: {why or reason(err)}") from err
    os.set_blocking(descriptor, True)
    return descriptor
