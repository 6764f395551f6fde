"""Parts A and B of ``bench_dbserver.py``: many processes write single durable jobs at once, in several ways."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from dbserver_peers import count_rows, make_file
from dbserver_tools import Clients, Server, Verdicts, dbserver, new_database, peer_server, quantile, slow_fsync

from balsam_core import open_db

if TYPE_CHECKING:
    import argparse

PROCESSES = 16
MODES = ("server", "native", "classic", "prototype")
CLASSIC_SECONDS = 15.0  # the classic settings are stopped after this time, as they would take minutes
ADDED_MS = 5


@dataclass(frozen=True)
class Storm:
    """What came of many processes writing at once; times in milliseconds, CPU in microseconds for each write."""

    rate: float
    p50: float
    p99: float
    worst: float
    errors: float
    client_cpu: float
    server_cpu: float

    @classmethod
    def median(cls, rounds: list[Storm]) -> Storm:
        """Return the median of each figure; errors are added up."""
        values = {f.name: statistics.median(getattr(one, f.name) for one in rounds) for f in fields(cls)}
        return cls(**values | {"errors": sum(one.errors for one in rounds)})


def storm(
    role: str,
    server: Server,
    count: int,
    *,
    seconds: float | None = None,
    env: dict[str, str] | None = None,
) -> tuple[Storm, int]:
    """Let 16 processes write at once.

    Returns:
        What came of it, and how many writes were acknowledged in all, warming up included.
    """
    with Clients(role, server.target, PROCESSES, count=count, seconds=seconds, env=env) as clients:
        clients.ready()
        server_cpu = server.cpu()
        clients.start()
        figures = clients.figures()
        server_cpu = server.cpu() - server_cpu
    done = sum(one["done"] for one in figures)
    times = [taken * 1e3 for one in figures for _, taken in one["latencies"]]
    result = Storm(
        rate=done / (max(one["end"] for one in figures) - min(one["begun"] for one in figures)),
        p50=quantile(times, 0.5),
        p99=quantile(times, 0.99),
        worst=max(times),
        errors=sum(one["errors"] for one in figures),
        client_cpu=sum(one["cpu"] for one in figures) / max(done, 1) * 1e6,
        server_cpu=server_cpu / max(done, 1) * 1e6,
    )
    return result, done + PROCESSES


def run_mode(mode: str, folder: Path, count: int, env: dict[str, str] | None) -> Storm:
    """Let 16 processes write in one mode; check that each acknowledged write is there once."""
    place = Path(tempfile.mkdtemp(dir=folder))
    if mode == "classic":
        file = make_file(place / "classic", wal=False)
        result, written = storm(mode, Server(str(file), []), count, seconds=CLASSIC_SECONDS, env=env)
        found = count_rows(file)
    elif mode == "prototype":
        file = make_file(place / "prototype", wal=True)
        with peer_server(file, env) as server:
            result, written = storm(mode, server, count, env=env)
        found = count_rows(file)
    elif mode == "native":
        path = new_database(place)
        result, written = storm("balsam", Server(str(path), []), count, env=env)
        found = count_jobs(path)
    else:
        path = new_database(place)
        with dbserver(path, env) as server:
            assert env is None or server.has_loaded(env["LD_PRELOAD"]), "fsync is not slower in watchdog and server"
            result, written = storm("balsam", server, count, env=env)
        found = count_jobs(path)
    assert found == written, f"{mode}: {found} rows for {written} acknowledged writes"
    return result


def count_jobs(path: Path) -> int:
    """Count the jobs of a database."""
    with open_db(path) as db:
        return db.jobs.count()


def compare(
    modes: list[str], folder: Path, count: int, rounds: int, env: dict[str, str] | None = None
) -> dict[str, Storm]:
    """Run the modes in turns, print a table and return the medians of each mode."""
    runs: dict[str, list[Storm]] = {mode: [] for mode in modes}
    for _ in range(rounds):
        for mode in modes:
            runs[mode].append(run_mode(mode, folder, count, env))
    print(f"  {'':<10}writes/s [range]          p50 ms   p99 ms worst ms (max)   errors  CPU us/write (server's)")
    medians = {mode: Storm.median(some) for mode, some in runs.items()}
    for mode, one in medians.items():
        rates = [some.rate for some in runs[mode]]
        print(
            f"  {mode:<10}{one.rate:8.0f} [{min(rates):.0f}-{max(rates):.0f}]".ljust(34)
            + f"{one.p50:8.1f}{one.p99:9.1f}{one.worst:9.0f} ({max(some.worst for some in runs[mode]):.0f})".ljust(36)
            + f"{one.errors:6.0f}{one.client_cpu + one.server_cpu:10.0f} ({one.server_cpu:.0f})"
        )
    return medians


def part_a(options: argparse.Namespace, folder: Path, verdicts: Verdicts) -> None:
    """Compare the throughput of 16 writers."""
    count = 25 if options.quick else 200
    print(f"A. {PROCESSES} processes x {count} single durable writes, medians of {options.rounds} rounds")
    found = compare(options.modes or list(MODES), folder, count, options.rounds)
    server = found.get("server")
    if not server:
        return
    if native := found.get("native"):
        verdicts.check("throughput, server / native", server.rate / native.rate, least=2)
    if classic := found.get("classic"):
        verdicts.check("throughput, server / classic", server.rate / classic.rate)
    if prototype := found.get("prototype"):
        verdicts.check("throughput, server / prototype (aim: 0.35)", server.rate / prototype.rate)
    verdicts.check("server's worst latency, ms, median of rounds", server.worst, most=100)
    verdicts.check("server's errors", server.errors, most=0)


def part_b(options: argparse.Namespace, folder: Path, verdicts: Verdicts) -> None:
    """Compare the throughput on a disk with slow fsync."""
    count = 10 if options.quick else 50
    print(f"B. {PROCESSES} processes x {count}, {ADDED_MS} ms added to each fsync, medians of {options.rounds} rounds")
    env = slow_fsync(folder, ADDED_MS)
    found = compare(options.modes or ["server", "classic"], folder, count, options.rounds, env)
    if "server" in found and "classic" in found:
        server, classic = found["server"], found["classic"]
        verdicts.check("throughput, server / classic", server.rate / classic.rate, least=15)
        verdicts.check("p99, classic / server", classic.p99 / server.p99, least=50)
        verdicts.check("server's errors", server.errors, most=0)
