"""Faults inside a process: shared objects that stand before libc (``LD_PRELOAD``), built from ``shims/*.c``.

Make the shims that a test needs, start the programs with ``env=preload(shim, ...)``, and switch the shims while the
programs run::

    disk = FailIO(tmp_path)
    server = subprocess.Popen(argv, env=preload(disk))
    disk.set(errno.EIO, calls=["fsync"], path="db.sqlite3-wal")
    wait_until(lambda: disk.hits)
    disk.off()

``hits`` counts the faults inflicted, so a test can demand that its fault really happened. Children inherit a shim with
the environment. Statically linked programs, and calls that libc makes inside itself (``fopen``), are not reached.
Without a C compiler the test is skipped.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import functools
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SOURCES = Path(__file__).with_name("shims")
NFS, LUSTRE = 0x6969, 0x0BD00BD0
SECTOR = 512  # bytes that a disk writes whole or not at all


@functools.cache
def build(name: str) -> Path:
    """Return the shared object of a shim, compiled once for each test run."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("shims need Linux and a C compiler")
    library = _build_directory() / f"{name}.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall"]
    done = subprocess.run(
        [compiler, *flags, "-o", library, SOURCES / f"{name}.c", "-ldl"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"the shim {name} can't be built here: {done.stderr[-500:]}")
    return library


@functools.cache
def _build_directory() -> Path:
    directory = tempfile.mkdtemp(prefix="balsam-shims-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


class Shim:
    """One shim with a control file of its own; idle until it is set.

    Args:
        directory: An existing directory for the control file.
    """

    name: ClassVar[str]

    def __init__(self, directory: Path) -> None:
        self.library = build(self.name)
        self._control = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=directory)) / "control"

    @property
    def environment(self) -> dict[str, str]:
        """The variable that leads to the control file."""
        return {f"BALSAM_SHIM_{self.name.upper()}": str(self._control)}

    @property
    def hits(self) -> int:
        """How many faults have been inflicted, by all processes."""
        try:
            return self._control.with_name("control.hits").stat().st_size
        except FileNotFoundError:
            return 0

    def off(self) -> None:
        """Let everything pass."""
        self._control.unlink(missing_ok=True)

    def _order(self, text: str) -> None:
        temporary = self._control.with_name("control.new")
        temporary.write_text(text)
        temporary.replace(self._control)  # so that nobody reads half of it


def preload(*shims: Shim) -> dict[str, str]:
    """Return this process's environment with the shims added."""
    # PowerLoss goes first: it then sees what FailIO answers.
    ordered = sorted(shims, key=lambda shim: not isinstance(shim, PowerLoss))
    libraries = [*(str(shim.library) for shim in ordered), *os.environ.get("LD_PRELOAD", "").split()]
    environment = {**os.environ, "LD_PRELOAD": " ".join(libraries)}
    for shim in shims:
        environment |= shim.environment
    return environment


class SlowFsync(Shim):
    """Adds time to each fsync and fdatasync; ``hits`` counts them (also with 0 seconds)."""

    name = "slow_fsync"

    def set(self, seconds: float = 0.005) -> None:
        """Add this much from now on."""
        self._order(f"{round(seconds * 1e6)}\n")


class FailIO(Shim):
    """Makes calls on some files fail."""

    name = "fail_io"

    def set(self, error: int, *, path: str, calls: Sequence[str] = ("fsync",), every: int = 1) -> None:
        """Fail calls from now on.

        Args:
            error: The errno, e.g. ``errno.EIO``.
            path: Part of the files' path, e.g. ``db.sqlite3-wal``; ``/`` for all files (not sockets).
            calls: Which ones: fsync (and fdatasync), write (all kinds), truncate, read (all kinds), open (that may
                make a file).
            every: Only each Nth matching call of a process fails.
        """
        assert set(calls) <= {"fsync", "write", "truncate", "read", "open"}
        self._order(f"{error} {every} {','.join(calls)} {path}\n")


class NoLocks(Shim):
    """Takes away fcntl, lockf and flock locks. ``hits`` counts all calls about locks."""

    name = "no_locks"

    def lie(self) -> None:
        """Grant every lock, hold none."""
        self._order("lie\n")

    def fail(self, error: int) -> None:
        """Answer each attempt with an errno, e.g. ``errno.ENOLCK`` or ``errno.ENOSYS``."""
        self._order(f"{error}\n")


class FakeFS(Shim):
    """Says by statfs that every path is on a file system of another type."""

    name = "fake_fs"

    def set(self, magic: int = NFS) -> None:
        """Name the type by the kernel's magic number."""
        self._order(f"{magic:#x}\n")


class PowerLoss(Shim):
    """Knows what would be in a directory if the power failed now.

    All programs that write there must run under the shim. They may be killed, stopped for good and started again: what
    they wrote stays in the (imagined) page cache, as on a real system. :meth:`cut` gives the directory as the disk has
    it, at any moment: after killing everybody, or from under running programs.

    The model, which is as strict as POSIX allows:

    * what the directory holds when the shim is made is durable;
    * written data and changed sizes are durable after fsync or fdatasync of the file, by any process;
    * new, renamed and removed names are durable after fsync of their directory, not before. (ext4 often keeps more.
      SQLite in a rollback-journal mode therefore may lose its last commit even with ``synchronous=FULL``; ``EXTRA``
      is the cure. WAL mode is not concerned.)
    * if fsync fails, what was written since the last good one is never written, even when fsync is called again: so
      does Linux. Use it with :class:`FailIO`.

    Not seen: writing through mmap, stdio, sendfile, copy_file_range, posix_fallocate (:meth:`cut` fails if a file was
    forced to disk that is longer than what was seen of it), ``sync`` and ``O_SYNC``, symbolic links (they are
    lost), renamed directories (they lose their content). SQLite's ``-shm`` is left out. Don't stop (SIGSTOP) a program
    under this shim: it may hold the lock that all of them take. A tracked call costs about 10 microseconds more.

    Args:
        directory: Where the shim may keep its files; outside of ``tracked``.
        tracked: The directory to watch.
    """

    name = "power_loss"

    def __init__(self, directory: Path, tracked: Path) -> None:
        super().__init__(directory)
        self.tracked = tracked.resolve()
        self._state = self._control.with_name("state").resolve()
        for folder in ("inodes", "pending", "disk"):
            (self._state / folder).mkdir(parents=True)
        for source in [self.tracked, *self.tracked.rglob("*")]:
            target = self._state / "disk" / source.relative_to(self.tracked)
            if _is_directory(source):
                target.mkdir(exist_ok=True)
            elif _is_kept(source):
                inode = self._state / "inodes" / _key(source)
                shutil.copyfile(source, inode)
                target.hardlink_to(inode)
        self._order(f"{self.tracked}\n{self._state}\n")

    def cut(self, target: Path, *, keep: Literal["nothing", "something"] = "nothing", seed: int = 0) -> None:
        """Make the directory ``target`` as ``tracked`` would be after a power cut at this moment.

        Programs may go on: note what they were acknowledged before, then cut.

        Args:
            target: A path where nothing is.
            keep: What becomes of writes that were not forced to disk: all of them are lost, or a random choice of
                sectors reaches the disk, in any order, and so do the names in a random choice of directories.
            seed: For the choice.
        """
        with self._locked():
            missed = self._state / "missed"
            assert not missed.exists(), f"files changed in a way that the shim can't see: {missed.read_text()}"
            chance = random.Random(seed)
            disk = self._state / "disk"
            if keep == "something":
                self._settle(disk, target, chance)
            else:
                shutil.copytree(disk, target, copy_function=shutil.copyfile)
        for path in [target, *target.rglob("*")]:
            path.chmod(self._mode(path.relative_to(target)))

    def _settle(self, disk: Path, target: Path, chance: random.Random) -> None:
        """Copy the durable tree, with some of what was pending."""
        target.mkdir()
        contents: dict[str, bytes] = {}
        for folder in [disk, *(path for path in disk.rglob("*") if _is_directory(path))]:
            relative = folder.relative_to(disk)
            (target / relative).mkdir(exist_ok=True)
            present = self.tracked / relative
            if chance.random() < 0.5 and _is_directory(present):
                names = {path.name: _key(path) for path in present.iterdir() if _is_kept(path)}
            else:
                keys = {path.stat().st_ino: path.name for path in (self._state / "inodes").iterdir()}
                names = {path.name: keys[path.stat().st_ino] for path in folder.iterdir() if path.is_file()}
            for name, key in sorted(names.items()):
                if key not in contents:
                    contents[key] = self._with_some_pending(key, chance)
                (target / relative / name).write_bytes(contents[key])

    def _with_some_pending(self, key: str, chance: random.Random) -> bytes:
        inode, log = self._state / "inodes" / key, self._state / "pending" / key
        content = bytearray(inode.read_bytes() if inode.exists() else b"")
        for truncates, offset, data in _records(log.read_bytes() if log.exists() else b""):
            if truncates:
                if chance.random() < 0.5:
                    content[:] = content[:offset].ljust(offset, b"\0")
                continue
            start = 0
            while start < len(data):
                end = min(len(data), start + SECTOR - (offset + start) % SECTOR)
                if chance.random() < 0.5:
                    content.extend(bytes(max(0, offset + start - len(content))))
                    content[offset + start : offset + end] = data[start:end]
                start = end
        return bytes(content)

    def _mode(self, relative: Path) -> int:
        """Return the permissions that the original has; those of what is gone by now are guessed."""
        try:
            return stat.S_IMODE((self.tracked / relative).stat().st_mode)
        except FileNotFoundError:
            return 0o700 if (self._state / "disk" / relative).is_dir() else 0o600

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold everybody between two calls."""
        with (self._state / "lock").open("ab") as file:
            deadline = time.monotonic() + 30
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    stopped = "a program was stopped while it held the lock of the shim power_loss"
                    assert time.monotonic() < deadline, stopped
                time.sleep(0.0002)
            yield


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_kept(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and not path.name.endswith("-shm")


def _key(path: Path) -> str:
    """Return inode number and birth time, as power_loss.c writes them."""
    room = ctypes.create_string_buffer(256)  # struct statx
    at_fdcwd, nofollow, wanted = -100, 0x100, 0x800 | 0x100
    if ctypes.CDLL(None, use_errno=True).statx(at_fdcwd, os.fsencode(path), nofollow, wanted, room) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    (mask,) = struct.unpack_from("I", room, 0)
    if not mask & 0x800:
        pytest.skip(f"the file system of {path} has no birth times, which the shim power_loss needs")
    (inode,) = struct.unpack_from("Q", room, 32)
    seconds, nanoseconds = struct.unpack_from("qI", room, 80)
    return f"{inode}-{seconds}-{nanoseconds}"


def _records(log: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Give truncates, offset and data of each record that is whole."""
    head = struct.Struct("qqq")
    at = 0
    while at + head.size <= len(log):
        truncates, offset, length = head.unpack_from(log, at)
        data = log[at + head.size : at + head.size + length]
        if len(data) == length:
            yield truncates, offset, data
        at += head.size + length
