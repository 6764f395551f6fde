"""One client process of ``bench_dbserver.py``.

It gets ready, prints ``ready``, waits for a line with the time to start at, works and prints its figures as JSON. The
next line on its input, or the end of the input, ends it early. Times are those of CLOCK_MONOTONIC, which all
processes of a machine share.

    python benchmarks/dbserver_worker.py balsam DIRECTORY --count 200
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import dbserver_peers
import msgspec

from balsam_core import Job, open_db
from balsam_core.errors import BalsamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONGEST_PAUSE = 0.02  # seconds before a failed write is repeated
LONGEST_LIFE = 900  # seconds; a worker that hangs must not hang the benchmark
ended = threading.Event()


def typical_job(number: int) -> Job:
    """Give a job of about 400 encoded bytes."""
    return Job(
        name=f"relax-{os.getpid()}-{number}",
        workflow="catalysis",
        description="Relaxation of one adsorbate on one face of a slab; made by the benchmark of the write server.",
        command="relax.x --in {structure} --cutoff {cutoff} --steps 200",
        parameters={"structure": f"slab-{number % 50}.cif", "cutoff": 520, "spin": True, "smearing": 0.05},
        input_files=["*.cif", "WAVECAR"],
        stage_in="/projects/catalysis/structures",
        environ={"OMP_NUM_THREADS": "4"},
        num_nodes=2,
        ranks_per_node=16,
    )


def encoded_job(number: int) -> bytes:
    """Give the same job as bytes, which is what the peers write."""
    return msgspec.msgpack.encode(typical_job(number))


class Balsam:
    """Writes through the public interface: through the server where one is published, else to the file."""

    failures = (BalsamError,)

    def __init__(self, target: str) -> None:
        self.db = open_db(target)

    def write(self, number: int) -> None:
        """Add one job."""
        self.db.jobs.add(typical_job(number))


class Peer:
    """Writes the same job by one of the peers."""

    def __init__(self, client: dbserver_peers.Classic | dbserver_peers.Prototype) -> None:
        self.client = client
        self.failures = client.failures

    def write(self, number: int) -> None:
        """Write one job."""
        self.client.write(number, encoded_job(number))


def write(options: argparse.Namespace) -> Iterator[dict[str, Any] | None]:
    """Write jobs one at a time; a failed write is repeated after a random pause, and its latency covers all of it."""
    if options.role == "balsam":
        writer: Balsam | Peer = Balsam(options.target)
    else:
        peers = {"classic": dbserver_peers.Classic, "prototype": dbserver_peers.Prototype}
        writer = Peer(peers[options.role](options.target))
    warmed = False
    while not warmed:
        try:
            writer.write(-1)  # modules, connection, prepared statements
            warmed = True
        except writer.failures:
            time.sleep(random.uniform(0, LONGEST_PAUSE))
    yield None
    begun, cpu = time.monotonic(), time.process_time()
    latest = begun + options.seconds
    latencies: list[tuple[float, float]] = []
    done = errors = 0
    while done < options.count and not ended.is_set() and time.monotonic() < latest:
        begin = time.monotonic()
        written = False
        while not written and not ended.is_set() and time.monotonic() < latest:
            try:
                writer.write(done)
                written = True
            except writer.failures:
                errors += 1
                time.sleep(random.uniform(0, LONGEST_PAUSE))
        # Where time ran out, this is a lower bound.
        latencies.append((begin, time.monotonic() - begin))
        done += written
    end = time.monotonic()
    cpu = time.process_time() - cpu
    yield {"done": done, "errors": errors, "begun": begun, "end": end, "cpu": cpu, "latencies": latencies}


def read(options: argparse.Namespace) -> Iterator[dict[str, Any] | None]:
    """Read jobs: three of their fields, or whole."""
    with open_db(options.target) as db:
        assert db.jobs.first()
        yield None
        begun = time.monotonic()
        jobs = db.jobs.limit(options.count)
        done = sum(1 for _ in (jobs.rows("id", "name", "state") if options.role == "rows" else jobs))
        yield {"done": done, "begun": begun, "end": time.monotonic()}


def hold(options: argparse.Namespace) -> Iterator[dict[str, Any] | None]:
    """Open many clients, add one job by each and keep all open until told; then each makes one more call."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    yield None
    begun = time.monotonic()
    clients = []
    done = errors = 0
    for number in range(options.count):
        try:
            db = open_db(options.target)
            clients.append(db)
            db.jobs.add(typical_job(number))
            done += 1
        except BalsamError as err:
            errors += 1
            print(f"client {number}: {err}", file=sys.stderr)
    yield {"done": done, "errors": errors, "begun": begun, "end": time.monotonic()}
    ended.wait()
    begun = time.monotonic()
    served = sum(db.jobs.where(id=1).count() for db in clients)
    yield {"done": served, "begun": begun, "end": time.monotonic()}


def commits(options: argparse.Namespace) -> Iterator[dict[str, Any] | None]:
    """Commit one INSERT after the other by stdlib sqlite3."""
    file = dbserver_peers.connect(options.target)
    dbserver_peers.commit_one(file, encoded_job(-1))
    yield None
    latencies = [(0.0, dbserver_peers.commit_one(file, encoded_job(number))) for number in range(options.count)]
    yield {"done": options.count, "latencies": latencies}


def _wait_for_end() -> None:
    sys.stdin.readline()
    ended.set()


def main() -> None:
    """Do what the command line says."""
    roles: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any] | None]]] = {
        **dict.fromkeys(("balsam", "classic", "prototype"), write),
        **dict.fromkeys(("rows", "jobs"), read),
        "hold": hold,
        "commits": commits,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=roles)
    parser.add_argument("target", help="DB directory, database file or address")
    parser.add_argument("--count", type=int, default=2**31)
    parser.add_argument("--seconds", type=float, default=LONGEST_LIFE)
    options = parser.parse_args()
    signal.alarm(LONGEST_LIFE)
    work = roles[options.role](options)
    next(work)
    print("ready", flush=True)
    start = sys.stdin.readline()
    if not start:
        return
    threading.Thread(target=_wait_for_end, daemon=True).start()
    time.sleep(max(0.0, float(start) - time.monotonic()))
    for figures in work:
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
