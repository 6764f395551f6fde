"""Balsam on PostgreSQL and MariaDB, against the bare drivers and servers in the same run.

The servers are those that ``balsam init`` and ``balsam dbserver`` make, with their durable settings, and the peers use
them as well: same server programs, same tables, same indexes. Rounds alternate between the sides; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dbserver_tools
from backends_tools import BALSAM, FILLED, bare, empty, running

from balsam_core import Job, open_db
from balsam_postgres.programs import find_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HERE = Path(__file__).parent
MUCH = 0.8  # of what is wanted
CHUNK = 2000  # jobs in one transaction, as Balsam has
PROCESSES = 16
TITLES = {"sqlite": "SQLite, served", "postgres": "PostgreSQL", "mysql": "MariaDB"}
Rows = dict[str, tuple[list[str], list[tuple[Any, ...]]]]


def job_stream(count: int) -> Iterator[Job]:
    """Give jobs as a parameter sweep makes them."""
    for number in range(count):
        yield Job(name=f"sim{number}", workflow="scan", command="sim.x --x {x}", parameters={"x": number})


class Verdicts(dbserver_tools.Verdicts):
    """Also remembers what was missed by much, not by the noise of a busy machine."""

    def __init__(self) -> None:
        super().__init__()
        self.far: list[str] = []

    def check(self, what: str, value: float, *, most: float | None = None, least: float | None = None) -> None:
        """Print one ratio with its limit."""
        super().check(what, value, most=most, least=least)
        if (most is not None and value > most / MUCH) or (least is not None and value < least * MUCH):
            self.far.append(what)


def timed(action: Callable[[], object]) -> float:
    """Return how many seconds something takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


# ---- adding


def read_all(path: Path) -> Rows:
    """Return what adding has left in the tables."""
    rows: Rows = {}
    with bare(path) as connection:
        cursor = connection.cursor()
        for table in FILLED:
            cursor.execute(f"SELECT * FROM {table} ORDER BY 1")  # noqa: S608  (a constant)
            names = [column[0] for column in cursor.description]
            rows[table] = (names, list(cursor.fetchall()))
        connection.commit()
    return rows


def copy(connection: Any, table: str, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:  # noqa: ANN401
    """Write rows by PostgreSQL's COPY."""
    from psycopg.types.json import Jsonb

    columns = ", ".join(f'"{name}"' for name in names)
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as out:
        for row in rows:
            out.write_row([Jsonb(value) if isinstance(value, (dict, list)) else value for value in row])


def executemany(connection: Any, table: str, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:  # noqa: ANN401
    """Write rows by mysqlclient's executemany, which makes one INSERT of many."""
    columns, marks = ", ".join(f"`{name}`" for name in names), ", ".join(["%s"] * len(names))
    connection.cursor().executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)  # noqa: S608


def write_all(path: Path, rows: Rows, write: Callable[..., None]) -> float:
    """Write rows by hand, each chunk of jobs and their events in one transaction; returns seconds."""
    with bare(path) as connection:
        connection.rollback()
        begin = time.perf_counter()
        for table in FILLED[:3]:
            write(connection, table, *rows[table])
        for start in range(0, len(rows["jobs"][1]), CHUNK):
            for table in FILLED[3:]:
                names, values = rows[table]
                write(connection, table, names, values[start : start + CHUNK])
            connection.commit()
        return time.perf_counter() - begin


def adding(verdicts: Verdicts, place: Path, options: argparse.Namespace) -> None:
    """Compare ``db.jobs.add`` with COPY and executemany of the same rows."""
    for db_type, write, peer in (("postgres", copy, "psycopg COPY"), ("mysql", executemany, "mysqlclient executemany")):
        if db_type not in options.db_types:
            continue
        with running(place / f"add-{db_type}", db_type) as path, open_db(path) as db:
            ratios = []
            for number in range(options.rounds + 1):
                jobs = CHUNK if number == 0 else options.jobs  # the first round warms up
                ours = timed(lambda jobs=jobs: db.jobs.add(job_stream(jobs)))  # type: ignore[misc]
                rows = read_all(path)
                empty(path)
                theirs = write_all(path, rows, write)
                empty(path)
                ratios.append(theirs / ours)
            shown = ", ".join(f"{ratio:.2f}" for ratio in ratios[1:])
            print(f"{TITLES[db_type]}: adding {options.jobs} jobs, rounds {shown}")
            verdicts.check(f"{TITLES[db_type]}, of {peer}", statistics.median(ratios[1:]), least=0.5)


# ---- claiming


class Claimed(NamedTuple):
    """Jobs per second, the least share of the mean, and milliseconds of the clients' processors for 8 jobs."""

    rate: float
    share: float
    cpu: float


def claim_all(path: Path, role: str, count: int) -> Claimed:
    """Let 16 processes claim and finish all jobs."""
    with open_db(path) as db:
        db.jobs.add(Job(command="true") for _ in range(count))
    command = [sys.executable, str(HERE / "backends_worker.py"), role, str(path)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    try:
        for worker in workers:
            assert worker.stdout
            if worker.stdout.readline() != "ready\n":
                sys.exit(f"a client process of {role} failed")
        begin = time.perf_counter()
        for worker in workers:
            assert worker.stdin
            worker.stdin.write("\n")
            worker.stdin.flush()
        answers = [json.loads(worker.stdout.readline()) for worker in workers if worker.stdout]
        seconds = time.perf_counter() - begin
    finally:
        for worker in workers:
            worker.communicate()
    ids = [number for answer in answers for number in answer["ids"]]
    if len(ids) != count or len(set(ids)) != count:
        sys.exit(f"{role}: {len(ids)} claims of {len(set(ids))} jobs, of {count}")
    shares = [answer["timed"] for answer in answers]
    cpu = sum(answer["cpu"] for answer in answers) / sum(shares) * 8 * 1000
    return Claimed(sum(shares) / seconds, min(shares) / statistics.mean(shares), cpu)


def claiming(verdicts: Verdicts, place: Path, options: argparse.Namespace) -> None:
    """Compare claiming and finishing with psycopg by hand."""
    speeds: dict[str, float] = {}
    shares = []
    for db_type in options.db_types:
        ratios, rates, processors = [], [], []
        with running(place / f"claim-{db_type}", db_type) as path:
            for _ in range(options.rounds):
                ours = claim_all(path, "ours", options.claims)
                rates.append(ours.rate)
                shares.append(ours.share)
                if db_type == "postgres":
                    theirs = claim_all(path, "by-hand", options.claims)
                    ratios.append(ours.rate / theirs.rate)
                    processors.append(f"{ours.cpu:.1f} against {theirs.cpu:.1f}")
        speeds[db_type] = statistics.median(rates)
        if ratios:
            print(
                f"16 processes claim and finish {options.claims} jobs, rounds {', '.join(f'{r:.2f}' for r in ratios)}"
            )
            print(f"  ms of the clients' processors for 8 jobs: {', '.join(processors)}")
            verdicts.check("PostgreSQL, of a psycopg loop by hand", statistics.median(ratios), least=0.5)
    verdicts.check("least share of the mean, any database", min(shares), least=0.5)
    for db_type, speed in speeds.items():
        if db_type != "postgres" and "postgres" in speeds:
            print(f"  {TITLES[db_type]}, of Balsam on PostgreSQL: {speed / speeds['postgres']:.2f}")


# ---- starting


def bare_init(place: Path, bindir: Path) -> tuple[float, float]:
    """Make and start a PostgreSQL server by hand; returns seconds to make it and log in, to start it and log in."""
    import psycopg

    place.mkdir()
    secret = place / "password"
    secret.touch(mode=0o600)
    password = secrets.token_hex(16)
    secret.write_text(password)
    prefix = ["unshare", "-U", "--map-user=65534", "--map-group=65534"] if os.geteuid() == 0 else []
    make = [f"{bindir}/initdb", "-D", f"{place}/data", "-U", "admin", "--auth=scram-sha-256", f"--pwfile={secret}"]
    port = free_port()
    serve = [f"{bindir}/postgres", "-D", f"{place}/data", "-p", str(port)]
    serve += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]

    def start() -> subprocess.Popen[bytes]:
        server = subprocess.Popen([*prefix, *serve], stderr=subprocess.DEVNULL)
        url = f"postgresql://admin:{password}@127.0.0.1:{port}/postgres"
        while True:
            try:
                with psycopg.connect(url) as connection:
                    connection.execute("SELECT 1")
            except psycopg.OperationalError:
                if server.poll() is not None:
                    sys.exit("the bare PostgreSQL server did not start")
                time.sleep(0.01)
            else:
                return server

    begin = time.perf_counter()
    subprocess.run([*prefix, *make, "-E", "UTF8", "--locale=C", "-k"], check=True, stdout=subprocess.DEVNULL)
    server = start()
    made = time.perf_counter() - begin
    server.send_signal(2)
    server.wait()
    begin = time.perf_counter()
    server = start()
    started = time.perf_counter() - begin
    server.send_signal(2)
    server.wait()
    return made, started


def free_port() -> int:
    """Return a port that nobody uses now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def starting(verdicts: Verdicts, place: Path, options: argparse.Namespace) -> None:
    """Compare ``balsam init`` and ``balsam dbserver`` on PostgreSQL with initdb and postgres by hand."""
    if "postgres" not in options.db_types:
        return
    ratios, extra = [], []
    for number in range(options.rounds):
        path = place / f"start{number}"
        init = timed(lambda path=path: run("init", path, "--db-type", "postgres"))  # type: ignore[misc]
        try:
            serve = timed(lambda path=path: (run("dbserver", "--path", path), query(path)))  # type: ignore[misc]
        finally:
            run("--db", path, "dbserver", "--stop")
        made, started = bare_init(place / f"bare{number}", find_server().bindir)
        ratios.append(init / made)
        extra.append(serve - started)
        shutil.rmtree(place / f"bare{number}")
    print("balsam init and balsam dbserver on PostgreSQL")
    verdicts.check("init, of initdb + start + first login", statistics.median(ratios), most=2)
    verdicts.check("dbserver to first query, seconds more than postgres by hand", statistics.median(extra), most=1)


def run(*words: str | Path) -> None:
    """Run a command of Balsam's."""
    subprocess.run([*BALSAM, *words], check=True, stdout=subprocess.DEVNULL)


def query(path: Path) -> None:
    """Ask a DB for something, in this process, as the bare side does."""
    with open_db(path) as db:
        db.jobs.count()


PARTS = {"add": adding, "claim": claiming, "start": starting}


def main() -> None:
    """Print the ratios; exit with 1 where a wanted one is missed by much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs to add")
    parser.add_argument("--claims", type=int, default=16_000, help="jobs to claim and finish")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--db-types", default="postgres,mysql,sqlite", type=lambda text: text.split(","))
    parser.add_argument("--directory", default="/var/tmp", help="on a disk (default: /var/tmp)")  # noqa: S108
    options = parser.parse_args()
    verdicts = Verdicts()
    with tempfile.TemporaryDirectory(prefix="balsam-bench-", dir=options.directory) as place:
        for part in options.only.split(","):
            PARTS[part](verdicts, Path(place), options)
    if verdicts.far:
        sys.exit(f"missed by much: {'; '.join(verdicts.far)}")


if __name__ == "__main__":
    main()
