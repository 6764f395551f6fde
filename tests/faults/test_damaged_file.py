"""A database file that is damaged or none of ours: refused in one line and left as it is, or at least survived."""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
import time
from contextlib import closing

import pytest
from amounts import at_most
from balsam_program import child

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import BalsamError, Corrupt
from balsam_core.watchdog import control

HEADER = 100  # bytes of SQLite's own


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A DB with 300 jobs, at rest."""
    path = tmp_path_factory.mktemp("healthy") / "db"
    initialise(path)
    with open_db(path) as db:
        db.jobs.add(Job(name=f"job{n}", command="echo something to be found", workflow=f"w{n % 7}") for n in range(300))
    return path


def truncated(file, chance):
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(chance.choice([1, 99, 100, 511, 512, 4096, size - 1, size - 4096, chance.randrange(1, size)]))


def zeroed(file, chance):
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.write(bytes(chance.choice([16, HEADER, 4096, size, chance.randrange(HEADER, size)])))


def emptied(file, _chance):
    with file.open("r+b") as opened:
        opened.truncate(0)


def foreign_database(file, chance):
    file.unlink()
    with closing(sqlite3.connect(file)) as connection:
        if chance.random() < 0.5:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE jobs (id INTEGER, name TEXT)")
        connection.executemany("INSERT INTO jobs VALUES (?, 'x')", [(n,) for n in range(chance.randrange(500))])
        connection.commit()


def foreign_file(file, chance):
    file.write_bytes(
        chance.choice(
            [
                b"\x89PNG\r\n\x1a\n" + chance.randbytes(5000),
                b"#!/bin/sh\nexit 0\n",
                b"SQLite format 3\0" + chance.randbytes(chance.randrange(10_000)),
                chance.randbytes(chance.randrange(1, 100_000)),
            ]
        )
    )


def moved(file, _chance):
    file.unlink()


VARIED = [truncated, zeroed, foreign_database, foreign_file]


def state_of(directory):
    """Return names and digests of all files of the database."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.glob("*sqlite3*"))}


def test_damaged_or_foreign_files_are_refused_and_left_alone(healthy, tmp_path, amount, verdict):
    """The database file is damaged or foreign: server and commands refuse it and leave it untouched (T17)."""
    variants = amount(6, 200)
    seen = {}
    for n in range(variants):
        damage = (emptied, moved)[n] if n < 2 else VARIED[n % len(VARIED)]
        path = tmp_path / f"db{n}"
        shutil.copytree(healthy, path)
        damage(path / "db.sqlite3", random.Random(n))
        before = state_of(path)
        for words in (["dbserver", "--path", path], ["ls"]):
            line = child.refused(*words, code=Corrupt.exit_code, db=path)
            assert "db.sqlite3" in line, (damage.__name__, n, line)
            assert "restore it from a backup" in line, (damage.__name__, n, line)
            assert state_of(path) == before, (damage.__name__, n, line)
        assert not control.has_server(DBDir.open(path))
        seen[damage.__name__] = seen.get(damage.__name__, 0) + 1
        shutil.rmtree(path)
    verdict("T17", "damaged or foreign database file", f"{variants} of {variants} refused, untouched: {seen}")


def flipped(file, chance):
    """Change 16 bytes somewhere behind the first page."""
    content = bytearray(file.read_bytes())
    at = chance.randrange(4096, len(content) - 16)
    content[at : at + 16] = bytes(byte ^ chance.randrange(1, 256) for byte in content[at : at + 16])
    file.write_bytes(content)
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        try:
            return connection.execute("PRAGMA integrity_check").fetchall() != [(b"ok",)]
        except (sqlite3.DatabaseError, UnicodeDecodeError):  # the latter about its own message
            return True


def use(path):
    """Do what users do; returns the first complaint, None where nothing was noticed."""
    complaint = None
    with open_db(path) as db:
        for act in (
            lambda: [row.name for row in db.jobs],
            lambda: db.jobs.add(Job(name="new", command="true")),
            lambda: db.jobs.where(workflow="w3").kill(),
            db.jobs.states,
            lambda: db.jobs.where(name="job7").remove(),
        ):
            began = time.monotonic()
            try:
                act()
            except BalsamError as err:
                complaint = complaint or err
            assert time.monotonic() - began < at_most(20)
    return complaint


def test_flipped_bits_end_in_errors_and_not_in_crashes(healthy, make_served, tmp_path, amount, verdict):
    """Bits are flipped behind the first page: what is noticed is an error, and the server lives (T18)."""
    variants = amount(2, 60)
    noticed, unsound, restarts = 0, 0, 0
    for n in range(variants):
        path = tmp_path / f"flip{n}"
        shutil.copytree(healthy, path)
        served = make_served(path.name)
        unsound += flipped(path / "db.sqlite3", random.Random(n))
        done = served.command()
        if done.code == 0:
            complaint = use(path)
            noticed += complaint is not None
            restarts += served.lease.restarts
            assert served.lease.restarts == 0, complaint
            served.stop()
        else:
            assert done.error
            noticed += 1
        log = "".join(file.read_text() for file in (path / "log").glob("*.log"))
        assert "Traceback" not in log, (n, log)
        assert "unexpected" not in log, (n, log)
    said = f"{variants} times: {unsound} break the file's structure, {noticed} noticed in use, {restarts} server deaths"
    verdict("T18", "16 bytes flipped behind the first page", said)
