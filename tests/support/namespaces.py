"""Two hosts on one machine: namespaces with their own network, host name, boot id and process ids, one file system.

::

    with two_hosts(tmp_path) as (alpha, beta):
        alpha.balsam.good("dbserver", "--path", db, "--host", alpha.address)
        beta.balsam.good("ls", "--db", db)
        beta.run(["uname", "-n"])
        cut_between(alpha, beta)  # packets vanish, no error is reported
        join_again(alpha, beta)
        alpha.crash()  # every process there is gone at once, detached ones too

Works as root, and as an ordinary user where user namespaces are allowed (programs then believe to be root); elsewhere
the test is skipped with the reason. All processes of a host end with its first one, and that ends with the test run,
even a killed one. No bridge, no `ip netns`, nothing outside of the namespaces is changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from balsam_program import BALSAM, Program

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TIMEOUT = 120.0
_TOOLS = ("unshare", "nsenter", "setpriv", "ip", "mount", "hostname")
_NOWHERE = "02:00:00:00:00:00"  # a hardware address that nobody has
_KINDS = ["--net", "--uts", "--ipc", "--mount", "--pid"]

# The first process of a host: it says that all is ready, then waits for the end of its input. It inherits the orphans;
# ignoring SIGCHLD makes the kernel reap them.
_INIT = """
set -e
hostname "$1"
mount --bind "$2" /proc/sys/kernel/random/boot_id
ip link set lo up
trap '' CHLD
echo ready
exec cat
"""


@dataclass
class Host:
    """One of the two hosts.

    Attributes:
        name: Its host name.
        address: Its IPv4 address on the link to the other host; the interface is ``link0``.
        boot_id: What ``/proc/sys/kernel/random/boot_id`` says there.
    """

    name: str
    address: str
    boot_id: str
    _holder: subprocess.Popen[str]
    _pid: int
    _as_user: bool

    def argv(self, command: Sequence[Any]) -> list[str]:
        """Return the command that runs a command on this host; it is killed when that one is killed."""
        return [
            *self._enter(*_KINDS),
            f"--wd={Path.cwd()}",
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *map(str, command),
        ]

    @property
    def balsam(self) -> Program:
        """The ``balsam`` program, run on this host."""
        return Program(self.argv(BALSAM))

    @contextmanager
    def running(self, command: Sequence[Any], **settings: Any) -> Iterator[subprocess.Popen[Any]]:
        """Start a command on this host, with its output as text in ``stdout``; it is killed in the end.

        Its ``pid`` is nsenter's: ``kill()`` works, other signals must be sent by :meth:`signal`. If the command is
        stopped so is nsenter, which then doesn't notice the command's end.
        """
        settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True, **settings}
        with subprocess.Popen(self.argv(command), **settings) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, command: Sequence[Any], **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on this host and return how it ended, with its output as text."""
        settings = {"capture_output": True, "text": True, "timeout": TIMEOUT, **settings}
        return subprocess.run(self.argv(command), check=False, **settings)

    def good(self, command: Sequence[Any], **settings: Any) -> str:
        """Run a command that must succeed, and return its output."""
        done = self.run(command, **settings)
        assert done.returncode == 0, (done.args, done.stdout, done.stderr)
        return done.stdout

    def signal(self, pid: int, name: str) -> None:
        """Send a signal, e.g. ``STOP``, to a process by the number that it has on this host."""
        self.good(["/bin/kill", f"-{name}", pid])

    def crash(self) -> None:
        """End all processes at once; the host is gone."""
        self._holder.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, 9)
        self._holder.communicate()

    def _enter(self, *kinds: str) -> list[str]:
        user = ["--user", "--preserve-credentials"] if self._as_user else []
        return ["nsenter", f"--target={self._pid}", *user, *kinds]

    def _ip(self, *words: str) -> None:
        """Change this host's network; process ids are the caller's, files too."""
        subprocess.run([*self._enter("--net"), "ip", *words], check=True, capture_output=True, timeout=TIMEOUT)


@contextmanager
def two_hosts(directory: Path) -> Iterator[tuple[Host, Host]]:
    """Give two hosts, ``alpha`` (10.77.0.1) and ``beta`` (10.77.0.2), joined by a network link.

    Args:
        directory: An existing directory for a few small files.
    """
    missing = [tool for tool in _TOOLS if not shutil.which(tool)]
    if missing:
        pytest.skip(f"two hosts need the programs {', '.join(missing)}")
    with contextlib.ExitStack() as stack:
        alpha = stack.enter_context(_host(directory, "alpha", "10.77.0.1", beside=None))
        beta = stack.enter_context(_host(directory, "beta", "10.77.0.2", beside=alpha))
        try:
            alpha._ip("link", "add", "link0", "type", "veth", "peer", "name", "link1")
            alpha._ip("link", "set", "link1", "netns", str(beta._pid))
            beta._ip("link", "set", "link1", "name", "link0")
            for host in (alpha, beta):
                host._ip("address", "add", f"{host.address}/24", "dev", "link0")
                host._ip("link", "set", "link0", "up")
        except subprocess.CalledProcessError as err:
            pytest.skip(f"a network link can't be made here: {err.stderr.decode().strip()}")
        yield alpha, beta


@contextmanager
def _host(directory: Path, name: str, address: str, *, beside: Host | None) -> Iterator[Host]:
    boot_id = str(uuid.uuid4())
    file = directory / f"boot_id.{name}"
    file.write_text(boot_id + "\n")
    as_user = os.geteuid() != 0
    if beside is None:
        user = ["--user", "--map-root-user"] if as_user else []
        prefix = []
    else:  # in the same user namespace: else the two could not be joined
        user = []
        prefix = [*beside._enter(), "--"] if as_user else []
    unshare = ["unshare", *user, *_KINDS, "--fork", "--kill-child", "--mount-proc", "--"]
    holder = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *prefix, *unshare, "sh", "-c", _INIT, "init", name, file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if holder.stdout.readline() != "ready\n":
            pytest.skip(f"namespaces can't be made here: {holder.communicate()[1].strip()}")
        yield Host(name, address, boot_id, holder, _only_child(holder.pid), as_user)
    finally:
        holder.kill()
        holder.communicate()


def _only_child(pid: int) -> int:
    """Return the deepest process of a chain of children: nsenter and unshare have forked."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        (child,) = children
        pid = int(child)
    return pid


def cut_between(alpha: Host, beta: Host) -> None:
    """Let all packets between the two vanish; neither is told."""
    for here, there in ((alpha, beta), (beta, alpha)):
        here._ip("neighbour", "replace", there.address, "lladdr", _NOWHERE, "dev", "link0", "nud", "permanent")


def join_again(alpha: Host, beta: Host) -> None:
    """Undo :func:`cut_between`."""
    for here, there in ((alpha, beta), (beta, alpha)):
        here._ip("neighbour", "delete", there.address, "dev", "link0")


def limit_rate(host: Host, rate: str) -> None:
    """Let the host send no faster than this, e.g. ``1mbit``, with up to 400 ms of queue."""
    words = ["qdisc", "replace", "dev", "link0", "root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"]
    subprocess.run([*host._enter("--net"), "tc", *words], check=True, capture_output=True, timeout=TIMEOUT)
