"""What ``bench_dbserver.py`` compares the write server with: bare programs without anything of Balsam's.

Run as a program it is a server on a loopback port, which it prints: given a database file, the prototype of a write
server (group commit, one INSERT for each message, no encryption, no exactly-once); without one, an echo.

    python benchmarks/dbserver_peers.py [FILE]
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import time
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from pathlib import Path

TABLE = """
CREATE TABLE job (id INTEGER PRIMARY KEY, state TEXT NOT NULL, version INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX job_state ON job (state);
"""
BUSY_TIMEOUT = 5.0  # seconds, the default of sqlite3 and of Django
MOST = 512  # messages in one transaction


def make_file(path: Path, *, wal: bool) -> Path:
    """Make a database file with one table, one row of which is a job."""
    with sqlite3.connect(path) as file:
        file.execute(f"PRAGMA journal_mode={'WAL' if wal else 'DELETE'}")
        file.executescript(TABLE)
    file.close()
    return path


def count_rows(path: Path) -> int:
    """Count the jobs in such a file and check that it is sound."""
    file = sqlite3.connect(path)
    assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    count: int = file.execute("SELECT count(*) FROM job").fetchone()[0]
    file.close()
    return count


def connect(path: str) -> sqlite3.Connection:
    """Open such a file for durable writes; transactions are begun by hand."""
    file = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    file.execute("PRAGMA synchronous=FULL")
    return file


class Classic:
    """A writer as Balsam 0.2 was through Django: a deferred transaction that reads and then writes.

    Raises:
        sqlite3.OperationalError: From :meth:`write`: the database was locked; nothing was written.
    """

    failures = (sqlite3.OperationalError,)

    def __init__(self, target: str) -> None:
        self.file = connect(target)
        self.first = random.getrandbits(40) << 20

    def write(self, number: int, data: bytes) -> None:
        """Save one job."""
        key = self.first + number
        run = self.file.execute
        run("BEGIN")
        try:
            found = run("SELECT version FROM job WHERE id = ?", (key,)).fetchone()
            if found:
                run("UPDATE job SET version = ?, data = ? WHERE id = ?", (found[0] + 1, data, key))
            else:
                run("INSERT INTO job VALUES (?, 'CREATED', 1, ?)", (key, data))
            run("COMMIT")
        finally:
            if self.file.in_transaction:
                run("ROLLBACK")


class Prototype:
    """A client of the prototype, or of the echo."""

    failures = (zmq.Again,)

    def __init__(self, target: str) -> None:
        self.socket = zmq.Context().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvtimeo = 10_000
        self.socket.connect(target)

    def write(self, _number: int, data: bytes) -> None:
        """Send one job and wait for the answer."""
        self.socket.send(data)
        self.socket.recv()


def commit_one(file: sqlite3.Connection, data: bytes) -> float:
    """Give the seconds of one durable transaction with one INSERT."""
    begin = time.perf_counter()
    file.execute("BEGIN IMMEDIATE")
    file.execute("INSERT INTO job (state, version, data) VALUES ('CREATED', 1, ?)", (data,))
    file.execute("COMMIT")
    return time.perf_counter() - begin


def serve(path: str | None) -> None:
    """Serve until the process that started this one ends."""
    parent = os.getppid()
    file = connect(path) if path else None
    socket = zmq.Context().socket(zmq.ROUTER)
    print(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}", flush=True)
    while os.getppid() == parent:
        if not socket.poll(1000):
            continue
        calls: list[tuple[bytes, bytes]] = []
        try:
            while len(calls) < MOST:
                sender, data = socket.recv_multipart(zmq.NOBLOCK)
                calls.append((sender, data))
        except zmq.Again:
            pass
        if file:
            file.execute("BEGIN IMMEDIATE")
            for _, data in calls:
                file.execute("INSERT INTO job (state, version, data) VALUES ('CREATED', 1, ?)", (data,))
            file.execute("COMMIT")
        for sender, _ in calls:
            socket.send_multipart((sender, b"done"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", help="the database; without one the prototype only answers")
    serve(parser.parse_args().file)
