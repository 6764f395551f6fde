"""What the parts of ``bench_dbserver.py`` share: client processes, the write server, shims, memory, medians."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import psutil

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.dbdir import address
from balsam_core.dbdir.directory import DBDir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

HERE = Path(__file__).parent
BALSAM = [sys.executable, "-m", "balsam_core.cli"]
STARTING = 60  # seconds that `balsam dbserver` may take to start, and to let go of its output
SHIM_SOURCE = HERE.parent / "tests" / "support" / "shims" / "slow_fsync.c"


class Verdicts:
    """Prints ratios and remembers whether all that is required was reached."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def check(self, what: str, value: float, *, most: float | None = None, least: float | None = None) -> None:
        """Print one ratio or figure, with its limit if there is one."""
        text = f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
        if most is None and least is None:
            print(f"  {what}: {text}")
            return
        kept = value <= most if most is not None else least is not None and value >= least
        limit = f"at most {most:g}" if most is not None else f"at least {least:g}"
        print(f"  {what}: {text} ({limit}): {'ok' if kept else 'MISSED'}")
        if not kept:
            self.missed.append(what)


class Clients:
    """Client processes: all get ready, then all start at one moment. As a context manager it leaves none behind."""

    def __init__(
        self,
        role: str,
        target: str | Path,
        processes: int = 1,
        *,
        count: int | None = None,
        seconds: float | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        command = [sys.executable, str(HERE / "dbserver_worker.py"), role, str(target)]
        command += [] if count is None else ["--count", str(count)]
        command += [] if seconds is None else ["--seconds", str(seconds)]
        self.running = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
            for _ in range(processes)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.running:
            if kind:
                process.kill()
            process.communicate()

    def ready(self) -> None:
        """Wait until all are."""
        for process in self.running:
            assert _line(process.stdout) == "ready\n"

    def start(self) -> None:
        """Let all start at one moment."""
        self._say(f"{time.monotonic() + 0.05}\n")

    def end(self) -> None:
        """Ask all to end what they do."""
        self._say("end\n")

    def figures(self) -> list[dict[str, Any]]:
        """Wait for the next figures of each."""
        return [json.loads(_line(process.stdout)) for process in self.running]

    def _say(self, text: str) -> None:
        for process in self.running:
            assert process.stdin
            process.stdin.write(text)
            process.stdin.flush()


def _line(stream: IO[str] | None) -> str:
    assert stream
    line = stream.readline()
    if not line:
        sys.exit("a client process broke; its message stands above")
    return line


@dataclass(frozen=True)
class Server:
    """A server that was started for a measurement, and the processes that belong to it."""

    target: str
    processes: list[psutil.Process]

    def cpu(self) -> float:
        """Return the CPU seconds used so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)

    def memory(self, kind: str) -> float:
        """Return MiB in all by a line of ``smaps_rollup``: ``Pss`` counts a shared page once, ``Rss`` in each."""
        total = 0
        for process in self.processes:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))
        return total / 1024

    def has_loaded(self, library: str) -> bool:
        """Say whether a library is in each process."""
        return all(library in Path(f"/proc/{process.pid}/maps").read_text() for process in self.processes)


@contextmanager
def dbserver(path: Path, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Run ``balsam dbserver`` on a DB directory."""
    command = [*BALSAM, "dbserver", "--path", str(path)]
    done = subprocess.run(
        command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, timeout=STARTING
    )
    if done.returncode:
        sys.exit(f"`balsam dbserver` could not be started: {done.stdout.strip()}")
    try:
        published = address.read(DBDir.open(path))
        if published is None:
            sys.exit("`balsam dbserver` returned and no address is published")
        # By parentage, never by name: the watchdog is the parent of the published process.
        watchdog = psutil.Process(published.pid).parent()
        assert watchdog
        assert watchdog.pid not in {1, os.getpid()}, "the server has no watchdog"
        yield Server(str(path), [watchdog, *watchdog.children(recursive=True)])
    finally:
        subprocess.run([*command, "--stop"], check=True, stdout=subprocess.DEVNULL)
        assert address.read(DBDir.open(path)) is None


@contextmanager
def peer_server(file: Path | None = None, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Run the prototype on a file, or the echo."""
    command = [sys.executable, str(HERE / "dbserver_peers.py"), *([str(file)] if file else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield Server(_line(process.stdout).strip(), [psutil.Process(process.pid)])
        finally:
            process.kill()


def slow_fsync(folder: Path, milliseconds: int) -> dict[str, str]:
    """Return an environment that makes each fsync slower, by a library that is compiled now."""
    library, control = folder / "slow_fsync.so", folder / "slow_fsync"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, SHIM_SOURCE, "-ldl"], check=True)
    control.write_text(str(milliseconds * 1000))
    return os.environ | {"LD_PRELOAD": str(library), "BALSAM_SHIM_SLOW_FSYNC": str(control)}


def fsync_seconds(folder: Path, count: int = 200) -> float:
    """Return the median seconds of writing 4 KiB at the end of a file and syncing it."""
    times = []
    with Path(folder, "synced").open("wb", buffering=0) as file:
        for _ in range(count):
            begin = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of all values doesn't exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def new_database(folder: Path, jobs: int = 0) -> Path:
    """Make a DB directory in a folder of its own with so many jobs, written to the file directly."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "db"
    initialise(path, "sqlite")
    if jobs:
        with open_db(path) as db:
            db.jobs.add(Job(name=f"sim{n}", workflow="scan", command="sim.x", parameters={"x": n}) for n in range(jobs))
    return path
