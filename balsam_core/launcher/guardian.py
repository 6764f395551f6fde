"""The guardian of a launcher and its keepers: they end every process of the jobs when nobody else can any more.

A program of its own in one file, which imports nothing of Balsam: ``python -I -S guardian.py GROUP CONTROL LEASE
JOURNAL LOCKS...``, the folder of a control group, empty for none, and descriptors. The launcher sends one end of a
socket through CONTROL for each process that it wants to run at the same time, and the guardian forks a *keeper* that
serves it: one command at a time, by :func:`send` and :func:`receive`.

A keeper is a child subreaper, so that a command's tree is exactly its descendants, whatever groups and sessions they
made, and is gone when the system says that the keeper has no child. It ends the tree when the launcher asks, when the
command's main process has ended, when the launcher or the guardian is gone (the end of the socket; of a pipe that the
guardian holds), and when the launcher's lease is over: LEASE is a file of 8 bytes in shared memory, the time until
which commands may run. So a stopped launcher's jobs end in time, too.

A command has the guardian's environment and its own variables over it.

JOURNAL is a file, where a keeper writes how a command ended before it answers. The guardian writes ``farewell`` there
when the launcher and all processes are gone. LOCKS are kept open until then, and with them the locks that the launcher
has. All are in the control group, which ends them where guardian and keepers were killed together. Both ignore the
signals that reach all processes of a batch job.
"""

from __future__ import annotations

import contextlib
import marshal
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>
FAREWELL = b"farewell\n"
TELL_AFTER = 0.005  # seconds that a command runs before the launcher is told that it has started
LINGER = 0.1  # seconds in which what a main process left may end by itself, unmentioned
ORPHANS_GRACE = 1.0  # seconds for what outlives a main process that was asked to end
LOST_GRACE = 2.0  # seconds from SIGTERM to SIGKILL when the launcher or the guardian is gone
LEASE_GRACE = 5.0  # the same at the lease's end
STUCK_AFTER = 5.0  # seconds after SIGKILL
LONGEST_WAIT = 10.0  # seconds; a suspended machine's timers are late
LOOK_FOR_PARENT = 1.0  # seconds
LOOK_FOR_STRAYS = 0.1
MOST_BETWEEN_KILLS = 0.5  # seconds
OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
DEFAULT_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGTSTP", "SIGCONT")

_NOT_YET = -1  # in place of a status
_LENGTH = struct.Struct("!I")
_TIME = struct.Struct("d")
_HAS_PROC = os.path.isdir("/proc/self")  # noqa: PTH112
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


# ---- what launcher and keeper say to each other


def send(channel: socket.socket, *message: object) -> None:
    """Send a message."""
    data = marshal.dumps(message)  # type: ignore[arg-type]
    channel.sendall(_LENGTH.pack(len(data)) + data)


def receive(channel: socket.socket, buffer: bytearray) -> list[tuple]:  # type: ignore[type-arg]
    """Read what has arrived; return the messages that are whole, and leave the rest in the buffer.

    Raises:
        EOFError: The other side is gone.
    """
    try:
        data = channel.recv(1 << 16)  # more takes memory that comes from the system and goes back each time
    except BlockingIOError:
        return []
    except OSError:
        data = b""
    if not data:
        raise EOFError
    buffer += data
    messages = []
    while len(buffer) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
        if len(buffer) < end:
            break
        messages.append(marshal.loads(buffer[_LENGTH.size : end]))  # noqa: S302  (from our own launcher or keeper)
        del buffer[:end]
    return messages


class LeaseTime:
    """Until when commands may run, by a clock that nobody can set; shared by launcher and keepers."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _TIME.size)

    def extend(self, until: float) -> None:
        """Set the time."""
        _TIME.pack_into(self._memory, 0, until)

    def close(self) -> None:
        """Release the memory."""
        self._memory.close()

    def left(self) -> float:
        """Return the seconds that are left."""
        (until,) = _TIME.unpack_from(self._memory)
        return float(until) - lease_clock()


def lease_clock() -> float:
    """Return the time by the clock of leases, seconds; it goes on while the machine is suspended."""
    return time.clock_gettime(_CLOCK)


# ---- trees of processes


def descendants(root: int, leave_out: frozenset[int] = frozenset()) -> dict[int, str]:
    """Return the descendants of a process with their states, parents first; without the trees of ``leave_out``."""
    children: dict[int, list[tuple[int, str]]] = {}
    names = []
    with contextlib.suppress(OSError):
        names = os.listdir("/proc")  # noqa: PTH208  (pathlib takes time and memory)
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append((int(name), fields[0].decode()))
    found: dict[int, str] = {}
    waiting = [root]
    for parent in waiting:
        for pid, state in children.get(parent, ()):
            if pid not in leave_out:
                found[pid] = state
                waiting.append(pid)
    return found


def signal_all(pids: object, number: int) -> None:
    """Signal processes; those that are gone, or somebody else's, are left out."""
    for pid in pids:  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def become_subreaper() -> None:
    """Let orphaned descendants become children of this process, where the system can do that."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def watch_children() -> int:
    """Return a descriptor that becomes readable when a child ends."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reading


def drain(descriptor: int) -> None:
    """Read what a descriptor holds, or much of it: it is readable again where something is left."""
    with contextlib.suppress(BlockingIOError):
        os.read(descriptor, 4096)


# ---- the keeper


class RefusedError(Exception):
    """A command can't be started: at which step, and why."""


class Keeper:
    """Runs the commands of one socket, one after the other, each to the end of its whole tree."""

    def __init__(self, channel: socket.socket, lifeline: int, lease: LeaseTime, journal: int) -> None:
        self._channel = channel
        self._lifeline = lifeline
        self._lease = lease
        self._journal = journal
        self._buffer = bytearray()
        self._messages: list[tuple] = []  # type: ignore[type-arg]
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._environment = dict(os.environ)
        self._cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        self._wakeup = watch_children()
        self._poll = select.poll()
        for descriptor in (channel.fileno(), lifeline, self._wakeup):
            self._poll.register(descriptor, select.POLLIN)
        self._lost = ""  # who is gone: the launcher, the guardian, the lease

    def serve(self) -> None:
        """Run commands until the launcher or the guardian is gone."""
        self._tell("ready", os.getpid())
        while not self._lost:
            self._wait(LONGEST_WAIT)
            while self._messages:
                kind, *words = self._messages.pop(0)
                if kind == "start":  # a request to end a command may come after its end
                    self._run(*words)

    def _tell(self, *message: object) -> None:
        with contextlib.suppress(OSError):  # the launcher is gone, which the next wait tells
            send(self._channel, *message)

    def _wait(self, seconds: float) -> None:
        """Wait for messages, for the end of a child or of what keeps us, or for time to be over."""
        for descriptor, _ in self._poll.poll(max(0.0, seconds) * 1000):
            if descriptor == self._wakeup:
                drain(self._wakeup)
            elif descriptor == self._lifeline:
                self._lose("guardian", descriptor)
            else:
                try:
                    self._messages += receive(self._channel, self._buffer)
                except EOFError:
                    self._lose("launcher", descriptor)

    def _lose(self, who: str, descriptor: int) -> None:
        self._lost = self._lost or who
        self._poll.unregister(descriptor)

    # ---- one command

    def _run(self, *command: object) -> None:
        label = command[-1]
        try:
            self._main = self._spawn(*command[:-1])  # type: ignore[arg-type]
        except RefusedError as err:
            self._tell("refused", *err.args)
            return
        finally:
            os.chdir("/")  # no working directory is kept busy
        self._started_at = self._ended_at = time.monotonic()
        self._status = _NOT_YET
        self._cpu, self._memory = 0.0, 0
        self._why = ""  # why the tree is ended; empty while it isn't
        self._kill_at = float("inf")
        self._stuck_at: float | None = None
        self._between_kills = 0.01
        self._left_behind, self._is_told, self._is_swept = 0, False, False
        is_gone = False
        while not is_gone:
            while self._messages:
                _, grace = self._messages.pop(0)
                self._end("asked", grace)
            self._wait(self._seconds_until_due())
            is_gone = self._reap()
            if not is_gone:
                self._do_what_is_due()
        code = os.waitstatus_to_exitcode(self._status)
        if self._journal >= 0 and label:
            with contextlib.suppress(OSError):  # a full disk: after a crash of the launcher the job would run again
                os.write(self._journal, f"ran {label} {code} {self._why or 'itself'}\n".encode())
        times = (self._started_at, self._ended_at, self._cpu, self._memory)
        self._tell("ended", code, self._why, *times, self._left_behind)

    def _spawn(
        self, program: str, argv: list[str], cwd: str, env: dict[str, str], out: str, err: str, cores: list[int]
    ) -> int:
        opened: list[int] = []
        step = "lease"
        try:
            if self._lease.left() <= 0:
                raise OSError(0, "the launcher's lease is over")
            step = "cwd"
            os.chdir(cwd)
            step = "stdout"
            opened.append(os.open(out, OUTPUT_FLAGS, 0o666))  # not blocking: the name may be that of a pipe
            step = "stderr"
            opened.append(opened[0] if err == out else os.open(err, OUTPUT_FLAGS, 0o666))
            for descriptor in opened:
                os.set_blocking(descriptor, True)
            step = "cores"
            if self._cores and cores:
                os.sched_setaffinity(0, cores)
            step = "exec"
            actions = [(os.POSIX_SPAWN_DUP2, one, at) for at, one in enumerate((self._null, *opened))]
            return os.posix_spawn(
                program,
                argv,
                {**self._environment, **env},
                setsid=True,
                setsigmask=(),
                setsigdef=DEFAULT_SIGNALS,
                file_actions=actions,
            )
        except OSError as error:
            raise RefusedError(step, error.errno, error.strerror) from None
        except ValueError as error:  # a word that no program can be given
            raise RefusedError("words", 0, str(error)) from None
        finally:
            if self._cores and cores:
                os.sched_setaffinity(0, self._cores)
            for descriptor in set(opened):
                os.close(descriptor)

    def _reap(self) -> bool:
        """Collect what has ended; say whether the whole tree is gone."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if not pid:
                return False
            self._cpu += usage.ru_utime + usage.ru_stime
            self._memory = max(self._memory, usage.ru_maxrss)
            if pid == self._main:
                self._status, self._ended_at = status, time.monotonic()

    def _seconds_until_due(self) -> float:
        due = self._kill_at
        if self._status == _NOT_YET:
            due = due if self._is_told else min(due, self._started_at + TELL_AFTER)
        elif not self._is_swept:
            due = min(due, self._ended_at + LINGER)
        left = self._lease.left()
        return min(due - time.monotonic(), LONGEST_WAIT, left if left > 0 else LONGEST_WAIT)

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        if not self._is_told and self._status == _NOT_YET and now >= self._started_at + TELL_AFTER:
            self._is_told = True
            self._tell("started", self._started_at)
        if self._lease.left() <= 0:
            self._end("lease", LEASE_GRACE)
        if self._lost:
            self._end(self._lost, LOST_GRACE)
        if self._status != _NOT_YET and not self._is_swept and now >= self._ended_at + LINGER:
            self._is_swept = True
            if self._why:  # what was started just when the others were asked has not heard it
                signal_all(self._tree(), signal.SIGTERM)
                self._kill_at = min(self._kill_at, now + ORPHANS_GRACE)
            else:
                self._left_behind = sum(state != "Z" for state in descendants(os.getpid()).values())
                self._kill_at = now
        if now >= self._kill_at:
            self._kill(now)

    def _end(self, why: str, grace: float) -> None:
        """Ask all processes to end, and kill them after ``grace`` seconds; a later request can only shorten that."""
        if not self._why and not self._reap() and self._status == _NOT_YET:
            self._why = why
            tree = self._tree()
            signal_all(tree, signal.SIGTERM)
            signal_all(tree, signal.SIGCONT)  # a stopped one could not react
        self._kill_at = min(self._kill_at, time.monotonic() + grace)

    def _kill(self, now: float) -> None:
        tree = self._tree()
        signal_all(tree, signal.SIGKILL)
        if self._stuck_at is None:
            self._stuck_at = now + STUCK_AFTER
        elif now >= self._stuck_at:
            self._stuck_at = float("inf")  # told once
            self._tell("stuck", sorted(tree))
        self._kill_at = now + self._between_kills
        self._between_kills = min(2 * self._between_kills, MOST_BETWEEN_KILLS)

    def _tree(self) -> list[int]:
        """Return the processes of the command; without ``/proc`` the group of its main one."""
        return [*descendants(os.getpid())] if _HAS_PROC else [-self._main]


# ---- the guardian


class Guardian:
    """Forks keepers while the launcher lives, and sees to it that nothing is left when they or it are gone."""

    def __init__(self, control: socket.socket, lease: LeaseTime, journal: int) -> None:
        self._control = control
        self._lease = lease
        self._journal = journal
        self._launcher = os.getppid()
        self._keepers: set[int] = set()
        self._killed: list[int] = []  # keepers that did not end by themselves, and whose processes we look for
        self._lifeline, self._lifeline_end = os.pipe()
        self._wakeup = watch_children()

    def serve(self) -> None:
        """Fork keepers until the launcher is gone, then wait for the last process."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        is_alone = False
        while not is_alone or self._keepers or self._killed:
            wait = LOOK_FOR_STRAYS if self._killed else LOOK_FOR_PARENT
            for descriptor, _ in poll.poll(wait * 1000):
                if descriptor == self._wakeup:
                    drain(self._wakeup)
                elif not self._fork_keeper():
                    poll.unregister(self._control)
                    is_alone = True
            if os.getppid() != self._launcher:
                is_alone = True
            if is_alone and self._lifeline_end >= 0:
                os.close(self._lifeline_end)
                self._lifeline_end = -1
            self._reap()
        if self._journal >= 0:
            with contextlib.suppress(OSError):
                os.write(self._journal, FAREWELL)

    def _fork_keeper(self) -> bool:
        """Fork a keeper for the socket that the launcher sends; say whether the launcher is there."""
        try:
            data, sockets, _, _ = socket.recv_fds(self._control, 1, 1)
        except OSError:
            return False
        if not sockets:
            return bool(data)
        channel = socket.socket(fileno=sockets[0])
        channel.set_inheritable(False)
        try:
            pid = os.fork()
        except OSError:  # the launcher sees the socket's end, and tries again later
            pid = -1
        if pid == 0:
            self._become_keeper(channel)
        if pid > 0:
            self._keepers.add(pid)
        channel.close()
        return True

    def _become_keeper(self, channel: socket.socket) -> NoReturn:
        code = 1
        try:
            os.close(self._lifeline_end)
            os.close(self._wakeup)
            self._control.close()
            become_subreaper()
            Keeper(channel, self._lifeline, self._lease, self._journal).serve()
            code = 0
        finally:
            os._exit(code)

    def _reap(self) -> None:
        """Collect ended keepers; what a killed one has left is ours now, and is killed."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid in self._keepers:
                    self._keepers.discard(pid)
                    if status:
                        self._killed.append(pid)
        if self._killed:
            strays = descendants(os.getpid(), frozenset(self._keepers))
            signal_all(strays, signal.SIGKILL)
            if not strays:
                self._tell_gone(self._killed)
                self._killed = []

    def _tell_gone(self, keepers: list[int]) -> None:
        with contextlib.suppress(OSError):
            send(self._control, "gone", keepers)


def main(group: str, control: int, lease: int, journal: int, *locks: int) -> None:
    """Be the guardian of the process that has started this one."""
    if group:
        with contextlib.suppress(OSError), open(f"{group}/cgroup.procs", "w") as file:  # noqa: PTH123
            file.write("0")  # this process
    for name in IGNORED_SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    for descriptor in (control, lease, journal, *locks):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    become_subreaper()
    os.chdir("/")
    times = LeaseTime(lease)
    os.close(lease)
    Guardian(socket.socket(fileno=control), times, journal).serve()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
