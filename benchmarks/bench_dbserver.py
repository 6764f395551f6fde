"""How fast `balsam dbserver` is for SQLite, as ratios against peers measured in the same run.

    python benchmarks/bench_dbserver.py [--only A,B] [--modes server,native] [--rounds 3] [--quick]

A  16 processes write single durable jobs at once, all starting together when connected and warm. `server`: the public
   Python API through `balsam dbserver`; `native`: the same on the file; `classic`: stdlib sqlite3 with rollback
   journal, synchronous FULL, deferred BEGIN, read-then-write and 5 s timeout; `prototype`: a bare ZeroMQ loop with
   group commit and one INSERT for each message. Jobs have 400 bytes. A failed write is counted and repeated.
B  The same with 5 ms added to each fsync by a preloaded library (in server and classic writers).
C  One client, one call at a time, against a bare ZeroMQ echo and one durable commit.
D  Latency of 4 writers while another client reads a million jobs, against the same without.
E  `balsam ls` through the server against `python -c "import click"`.
F  CPU and memory of an idle watchdog and server.
G  2,000 clients connected at once.

Compared modes take turns in each round; medians of the rounds. Exits 1 if a required ratio is missed. --quick shows
in less than a minute that everything runs; its figures decide nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench_cli import BALSAM, medians
from dbserver_peers import make_file
from dbserver_storms import MODES, part_a, part_b
from dbserver_tools import Clients, Verdicts, dbserver, fsync_seconds, new_database, peer_server, quantile

from balsam_core import Job, open_db
from balsam_core.system.filesystems import filesystem_type

if TYPE_CHECKING:
    from collections.abc import Callable

READING = {"rows": "three fields of each job", "jobs": "whole jobs"}


def part_c(options: argparse.Namespace, folder: Path, verdicts: Verdicts) -> None:
    """Compare the latency of a lone client with the least that a durable write needs."""
    count = 50 if options.quick else 400
    print(f"C. one client, one call at a time, {count} calls, medians of {options.rounds} rounds")
    file = make_file(folder / "one", wal=True)
    path = new_database(folder)
    times: dict[str, list[float]] = {"server": [], "echo": [], "commit": []}
    with dbserver(path) as server, peer_server() as echo:
        roles = {"server": ("balsam", server.target), "echo": ("prototype", echo.target), "commit": ("commits", file)}
        for _ in range(options.rounds):
            for name, (role, target) in roles.items():
                with Clients(role, target, count=count) as clients:
                    clients.ready()
                    clients.start()
                    times[name].append(quantile([taken for _, taken in clients.figures()[0]["latencies"]], 0.5))
    ours, echoed, commit = (statistics.median(times[name]) * 1e3 for name in ("server", "echo", "commit"))
    print(f"  p50: server {ours:.2f} ms; ZeroMQ echo {echoed:.2f} ms, durable commit {commit:.2f} ms")
    verdicts.check("server / (echo + commit)", ours / (echoed + commit), most=2)


def part_d(options: argparse.Namespace, folder: Path, verdicts: Verdicts) -> None:
    """Compare the latency of writers with and without a big reader."""
    quiet, jobs = (2.0, 20_000) if options.quick else (5.0, options.jobs)
    print(f"D. 4 writers while another client reads {jobs} jobs")
    path = new_database(folder, jobs)
    windows: dict[str, list[float]] = {}
    with dbserver(path), Clients("balsam", path, 4) as writers:
        writers.ready()
        writers.start()
        for role in READING:
            with Clients(role, path, count=jobs) as reader:
                reader.ready()
                time.sleep(0.5)  # the reader's own start is over
                windows[f"before {role}"] = [time.monotonic(), time.monotonic() + quiet]
                time.sleep(quiet)
                reader.start()
                figures = reader.figures()[0]
                assert figures["done"] == jobs
                windows[role] = [figures["begun"], figures["end"]]
        writers.end()
        written = writers.figures()
    latencies = [(begin, taken) for one in written for begin, taken in one["latencies"]]
    p99 = {}
    for name, (begin, end) in windows.items():
        some = [taken * 1e3 for when, taken in latencies if begin <= when < end]
        p99[name] = quantile(some, 0.99)
        print(
            f"  {name:<12} {end - begin:6.1f} s, {len(some) / (end - begin):6.0f} writes/s, "
            f"p50 {quantile(some, 0.5):.1f} ms, p99 {p99[name]:.1f} ms, worst {max(some):.0f} ms"
        )
    without = statistics.mean([p99["before rows"], p99["before jobs"]])
    for role, what in READING.items():
        verdicts.check(f"p99 while reading {what} / without", p99[role] / without, most=3)
    verdicts.check("writers' errors", sum(one["errors"] for one in written), most=0)


def part_e(options: argparse.Namespace, folder: Path, verdicts: Verdicts) -> None:
    """Compare the time of a listing."""
    print("E. balsam ls through the server")
    path = new_database(folder, 1000)
    peer = 'python -c "import click"'
    commands = {peer: [sys.executable, "-c", "import click"], "ls": [*BALSAM, "ls"]}
    with dbserver(path):
        taken = medians(commands, 3 if options.quick else 15, folder / "bytecode", {"ls": path})
    print(f"  balsam ls {taken['ls'] * 1e3:.0f} ms, {peer} {taken[peer] * 1e3:.0f} ms")
    verdicts.check(f"balsam ls / {peer}", taken["ls"] / taken[peer], most=3)


def part_f(options: argparse.Namespace, folder: Path, verdicts: Verdicts) -> None:
    """Measure what an idle server uses."""
    seconds = 4.0 if options.quick else 20.0
    print(f"F. idle watchdog and server, {seconds:g} s")
    path = new_database(folder)
    with dbserver(path) as server:
        with open_db(path) as db:
            db.jobs.add(Job(command="true"))
        time.sleep(2)
        begun, cpu = time.monotonic(), server.cpu()
        time.sleep(seconds)
        share = (server.cpu() - cpu) / (time.monotonic() - begun)
        print(f"  {len(server.processes)} processes, sum of RSS {server.memory('Rss'):.0f} MiB")
        verdicts.check("CPU, percent of a core", share * 100, most=0.5)
        verdicts.check("memory (PSS), MiB", server.memory("Pss"), most=120)


def part_g(options: argparse.Namespace, folder: Path, verdicts: Verdicts) -> None:
    """Connect many clients, all of which stay."""
    processes, each = (4, 50) if options.quick else (8, 250)
    print(f"G. {processes * each} clients connected at once, in {processes} processes")
    path = new_database(folder)
    with dbserver(path) as server, Clients("hold", path, processes, count=each) as clients:
        before = server.memory("Rss")
        clients.ready()
        clients.start()
        figures = clients.figures()
        taken = max(one["end"] for one in figures) - min(one["begun"] for one in figures)
        connected = server.memory("Rss")
        clients.end()
        again = clients.figures()
        print(
            f"  opened and wrote once in {taken:.1f} s; read once more in "
            f"{max(one['end'] for one in again) - min(one['begun'] for one in again):.1f} s; "
            f"RSS before {before:.0f} MiB"
        )
        verdicts.check("clients not served", processes * each - sum(one["done"] for one in figures), most=0)
        verdicts.check("clients not served again", processes * each - sum(one["done"] for one in again), most=0)
        verdicts.check("memory (RSS) of watchdog and server, MiB", max(connected, server.memory("Rss")), most=512)


def main() -> int:
    """Measure and print; the exit code says whether all that is required was reached."""
    parts: dict[str, Callable[[argparse.Namespace, Path, Verdicts], None]] = {
        "A": part_a,
        "B": part_b,
        "C": part_c,
        "D": part_d,
        "E": part_e,
        "F": part_f,
        "G": part_g,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.upper().split(","), help="parts to run, e.g. A,B")
    parser.add_argument("--modes", type=lambda text: text.split(","), help="modes of A and B to compare")
    parser.add_argument("--rounds", type=int, help="times that each mode runs (default: 3)")
    parser.add_argument("--jobs", type=int, default=1_000_000, help="jobs that the reader of D reads")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on a disk (default: /var/tmp)")  # noqa: S108
    parser.add_argument("--quick", action="store_true", help="small numbers, nothing required")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    if wrong := {*(options.only or [])} - {*parts} | {*(options.modes or [])} - {*MODES}:
        parser.error(f"no such part or mode: {', '.join(sorted(wrong))}")
    kind = filesystem_type(options.directory)
    if kind in {"tmpfs", "ramfs"}:
        parser.error(f"{options.directory} is in memory ({kind}), where a durable write costs nothing; use --directory")
    os.environ.pop("BALSAM_DB_PATH", None)

    verdicts = Verdicts()
    # The prefix is short: what is measured must not depend on it.
    with tempfile.TemporaryDirectory(prefix="balsam-bench-", dir=options.directory) as name:
        folder = Path(name)
        print(
            f"{options.directory} on {kind}; writing 4 KiB and fdatasync: {fsync_seconds(folder) * 1e3:.2f} ms; "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        for part, measure in parts.items():
            if part in (options.only or parts):
                begun = time.monotonic()
                measure(options, folder, verdicts)
                print(f"  ({time.monotonic() - begun:.0f} s)", flush=True)
    if verdicts.missed:
        print(f"missed: {'; '.join(verdicts.missed)}")
    return int(bool(verdicts.missed) and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
