"""The processes of jobs, each with all that it starts: begun and ended by keepers, told as events.

A guardian (:mod:`~balsam_core.launcher.guardian`) is started once, and a keeper for each process that runs at the same
time; a keeper that has become idle takes the next command. Nothing here waits for a process: :meth:`Processes.start`
and :meth:`Processes.end` send a message, and :meth:`Processes.wait` gives what the keepers answer.

Knows nothing about jobs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: TC003
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from balsam_core.dbdir.launcher_journal import MARK
from balsam_core.errors import NoResources
from balsam_core.launcher import guardian
from balsam_core.launcher.process_events import (
    SHORTAGE_ERRORS,
    Command,
    Ended,
    Event,
    Process,
    Refused,
    ShortageError,
    Started,
    Stuck,
    explain_refusal,
)
from balsam_core.launcher.programs import find_program
from balsam_core.system.cgroups import end_group, folder_of, make_group
from balsam_core.system.descriptors import keep_descriptors_private
from balsam_core.system.files import reason
from balsam_core.system.processes import end_marked

if TYPE_CHECKING:
    from balsam_core.dbdir.launcher_journal import OwnJournal

T = TypeVar("T")

SPARE_DESCRIPTORS = 16  # left to the database, the log and directories
GUARDIAN_TIMEOUT = 5.0  # seconds that the guardian may take to end
GROUP_TIMEOUT = 1.0  # seconds for the kernel to let go of a control group whose last process has just ended
GROUP_POLL = 0.01

_FIRST_FREE = 10  # descriptor of the guardian
_SEND_TIMEOUT = struct.pack("ll", 5, 0)  # seconds and microseconds: a keeper that somebody stopped must not stop us


@dataclass(slots=True, eq=False)
class _Keeper(Generic[T]):
    channel: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    pid: int = 0  # 0 until it says that it is there
    process: Process[T] | None = None


class Processes(Generic[T]):
    """The commands of one launcher.

    Attributes:
        running: The commands that were started and have not ended.
        mark: Which launcher all processes belong to; the value of :data:`MARK` in their environments.
        lease: Until when commands may run.
        guardian_pid: The guardian's process id; 0 while there is none.
    """

    def __init__(
        self,
        journal: OwnJournal | None = None,
        environment: Mapping[str, str] = os.environ,
        locks: Sequence[int] = (),
    ) -> None:
        """Prepare to run commands.

        Args:
            journal: File for the ends of labelled ones; None for none.
            environment: The environment variables that all commands have.
            locks: Descriptors that stay open, in the guardian, until all have ended.
        """
        self.running: set[Process[T]] = set()
        self.mark = os.urandom(16).hex()
        self.guardian_pid = 0
        self._group = ""  # the control group of all of them, where there is one
        self._journal = journal
        self._environment = {**environment, MARK: self.mark}
        self._search_path = environment.get("PATH", os.defpath)
        self._locks = locks
        self._selector = selectors.DefaultSelector()
        self._found_programs: dict[tuple[str, str], str] = {}
        self._keepers: set[_Keeper[T]] = set()
        self._idle: list[_Keeper[T]] = []
        self._without_keeper: dict[int, Process[T]] = {}  # by the lost keeper's process id
        self._gone: set[int] = set()  # lost keepers of which nothing is left
        self._control: socket.socket | None = None
        self._control_buffer = bytearray()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_descriptors = sys.maxsize if limit == resource.RLIM_INFINITY else limit - SPARE_DESCRIPTORS
        keep_descriptors_private()
        self._lease_file = _make_shared_memory()
        self.lease = guardian.LeaseTime(self._lease_file)
        self.lease.extend(float("inf"))

    def watch(self, descriptor: int, drain: Callable[[], None]) -> None:
        """Also return from :meth:`wait` when this descriptor becomes readable; ``drain`` must read it empty."""
        self._selector.register(descriptor, selectors.EVENT_READ, drain)

    def start(self, command: Command, owner: T) -> Process[T]:
        """Start a command in its own session, with an empty standard input; :meth:`wait` tells how that went.

        Raises:
            OSError: The program can't be found; the message says so.
            ShortageError: Too many processes or open files, or too little memory.
        """
        process = Process(owner, command)
        while True:
            keeper = self._idle.pop() if self._idle else self._add_keeper()
            if self._send_command(keeper, process):
                self.running.add(process)
                return process

    def _send_command(self, keeper: _Keeper[T], process: Process[T]) -> bool:
        """Let a keeper start a command; say whether it is there."""
        argv, cwd, env, stdout, stderr, label, cores = process.command
        process.is_remembered = bool(self._found_programs)
        try:
            search_path = env.get("PATH", self._search_path)
            process.program, full_argv = find_program(argv, search_path, cwd, self._found_programs)
        except OSError:
            self._free_keeper(keeper)
            raise
        keeper.process = process
        words = (process.program, full_argv, str(cwd), {**env, MARK: self.mark}, stdout, stderr, [*cores], label)
        try:
            guardian.send(keeper.channel, "start", *words)
        except OSError:
            keeper.process = None
            self._drop_keeper(keeper)
            return False
        return True

    def _add_keeper(self) -> _Keeper[T]:
        try:
            ours, theirs = socket.socketpair()
        except OSError as err:
            raise ShortageError(reason(err)) from err
        with contextlib.ExitStack() as closing:
            closing.callback(theirs.close)
            unused = closing.enter_context(contextlib.ExitStack())
            unused.callback(ours.close)
            if self.running and theirs.fileno() >= self._most_descriptors:
                raise ShortageError(os.strerror(errno.EMFILE).lower())
            try:
                control = self._control or self.start_guardian()
                socket.send_fds(control, [b"k"], [theirs.fileno()])
            except NoResources as err:
                raise ShortageError(f"the guardian can't be started: {err}") from err
            except OSError as err:
                raise ShortageError(f"the guardian can't be reached: {reason(err)}") from err
            unused.pop_all()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        keeper: _Keeper[T] = _Keeper(ours)
        self._keepers.add(keeper)
        self._selector.register(ours, selectors.EVENT_READ, keeper)
        return keeper

    def start_guardian(self) -> socket.socket:
        """Start the guardian, and return the socket that reaches it; else the first command does that.

        Raises:
            DBDirError: The journal can't be written.
            OSError: The guardian can't be started.
            ShortageError: What a killed one kept has not ended yet.
        """
        if self._keepers or self._without_keeper:
            raise ShortageError("the guardian was killed, and its processes have not ended yet")
        self._collect_guardian(GUARDIAN_TIMEOUT)
        journal = self._journal.make() if self._journal else -1
        self._group = make_group(self.mark)
        with contextlib.ExitStack() as unused, contextlib.ExitStack() as given:
            control, theirs = socket.socketpair()
            unused.callback(control.close)
            given.callback(theirs.close)
            words = []
            for number in (theirs.fileno(), self._lease_file, journal, *self._locks):
                inherited = fcntl.fcntl(number, fcntl.F_DUPFD, _FIRST_FREE) if number >= 0 else -1
                words.append(str(inherited))
                if inherited >= 0:
                    given.callback(os.close, inherited)
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            given.callback(os.close, nothing)
            errors = journal if journal >= 0 else nothing
            self.guardian_pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", guardian.__file__, str(folder_of(self._group) or ""), *words],
                self._environment,
                setsid=True,
                file_actions=[(os.POSIX_SPAWN_DUP2, one, at) for at, one in enumerate((nothing, nothing, errors))],
            )
            unused.pop_all()
        self._control = control
        self._control_buffer.clear()
        self._selector.register(control, selectors.EVENT_READ, control)
        if self._journal:
            try:
                self._journal.write_head(self.guardian_pid, self.mark, self._group)
            except BaseException:
                self._close_control()  # nobody could tell that it is ours
                raise
        return control

    # ---- events

    def wait(self, timeout: float) -> Iterator[Event[T]]:
        """Wait until a keeper says something, a watched descriptor is readable, or time is over; give the events."""
        for key, _ in self._selector.select(max(timeout, 0.0)):
            if key.data in self._keepers:
                yield from self._hear_keeper(key.data)
            elif self._control is not None and key.data is self._control:
                self._hear_guardian(self._control)
            elif callable(key.data):
                key.data()
        if self._without_keeper:
            yield from self._end_lost()

    def _hear_keeper(self, keeper: _Keeper[T]) -> Iterator[Event[T]]:
        try:
            messages = guardian.receive(keeper.channel, keeper.buffer)
        except EOFError:
            yield from self._lose_keeper(keeper)
            return
        for kind, *rest in messages:
            process = keeper.process
            if kind == "ready":
                keeper.pid = rest[0]
            elif process is None:
                continue
            elif kind == "started":
                yield _note_start(process, rest[0])
            elif kind == "stuck":
                yield Stuck(process.owner, rest[0])
            elif kind == "refused":
                yield from self._hear_refusal(keeper, process, *rest)
            elif kind == "ended":
                self._free_keeper(keeper)
                if rest[1] == "guardian":
                    self._close_control()  # no other keeper lives long
                if not process.started_at:
                    yield _note_start(process, rest[2])
                yield Ended(process.owner, *rest)

    def _free_keeper(self, keeper: _Keeper[T]) -> None:
        if keeper.process is not None:
            self.running.discard(keeper.process)
        keeper.process = None
        self._idle.append(keeper)

    def _hear_refusal(
        self, keeper: _Keeper[T], process: Process[T], step: str, number: int, text: str
    ) -> Iterator[Refused[T]]:
        if step == "exec" and process.is_remembered and number not in SHORTAGE_ERRORS:
            self._found_programs.clear()  # it may have been moved since it was found
            try:
                if self._send_command(keeper, process):
                    return
                error: Exception = ShortageError("a keeper was killed")
            except OSError as err:
                error = err
            self.running.discard(process)
        else:
            error = explain_refusal(process.program, process.command, step, number, text)
            self._free_keeper(keeper)
        yield Refused(process.owner, error)

    # ---- keepers and guardians that are lost

    def _drop_keeper(self, keeper: _Keeper[T]) -> None:
        self._selector.unregister(keeper.channel)
        keeper.channel.close()
        self._keepers.discard(keeper)
        if keeper in self._idle:
            self._idle.remove(keeper)

    def _lose_keeper(self, keeper: _Keeper[T]) -> Iterator[Event[T]]:
        """Note that a keeper is gone; its process has ended when the guardian says that nothing is left of it."""
        self._drop_keeper(keeper)
        process = keeper.process
        if process is None:
            return
        if not keeper.pid:  # it never was there
            self.running.discard(process)
            yield Refused(process.owner, ShortageError("no keeper could be started"))
            return
        self._without_keeper[keeper.pid] = process

    def _hear_guardian(self, control: socket.socket) -> None:
        try:
            for _, keepers in guardian.receive(control, self._control_buffer):
                self._gone.update(keepers)
        except EOFError:
            self._close_control()

    def _end_lost(self) -> Iterator[Event[T]]:
        """Give the ends of processes whose keepers are lost, once nothing is left of them."""
        is_ours_to_end = self._control is None and bool(self._without_keeper)
        if is_ours_to_end and end_group(self._group) and end_marked(MARK, self.mark):
            self._gone.update(self._without_keeper)
        for pid in self._gone & self._without_keeper.keys():
            self._gone.discard(pid)
            process = self._without_keeper.pop(pid)
            self.running.discard(process)
            now = time.monotonic()
            if not process.started_at:
                yield _note_start(process, now)
            yield Ended(process.owner, -signal.SIGKILL, "keeper", process.started_at, now)

    def _close_control(self) -> None:
        if self._control is not None:
            self._selector.unregister(self._control)
            self._control.close()
            self._control = None
        for keeper in self._idle[:]:
            self._drop_keeper(keeper)

    def _collect_guardian(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.guardian_pid:
            with contextlib.suppress(ChildProcessError):
                if not os.waitpid(self.guardian_pid, os.WNOHANG)[0]:
                    if time.monotonic() >= until:
                        return
                    time.sleep(0.001)
                    continue
            self.guardian_pid = 0

    # ---- the end

    def end(self, process: Process[T], *, grace: float) -> None:
        """Ask a process to end, and kill it after ``grace`` seconds; a later request can only shorten that."""
        for keeper in self._keepers:
            if keeper.process is process:
                with contextlib.suppress(OSError):  # it is gone, which is told by the next wait
                    guardian.send(keeper.channel, "end", grace)

    def close(self, *, grace: float = 0.0) -> bool:
        """End all processes, kill them after ``grace`` seconds, and release everything.

        Returns:
            Whether all have ended. The guardian goes on with those that have not.
        """
        for process in list(self.running):
            self.end(process, grace=grace)
        deadline = time.monotonic() + grace + 2.0
        while self.running and time.monotonic() < deadline:
            for _ in self.wait(0.1):
                pass
        all_ended = not self.running
        for keeper in list(self._keepers):
            self._drop_keeper(keeper)
        self._close_control()
        self._collect_guardian(GUARDIAN_TIMEOUT if all_ended else 0.0)
        until = time.monotonic() + GROUP_TIMEOUT
        while all_ended and not end_group(self._group) and time.monotonic() < until:
            time.sleep(GROUP_POLL)
        self._selector.close()
        self.lease.close()
        os.close(self._lease_file)
        if self._journal:
            self._journal.close()
        return all_ended


def _note_start(process: Process[T], at: float) -> Started[T]:
    process.started_at = at
    return Started(process.owner, at)


def _make_shared_memory() -> int:
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("balsam-lease")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    os.ftruncate(number, 8)
    return number
