"""``db.sqlite3`` under the SQLite backend: what is refused, untouched, and what transactions do."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import sqlite3
import struct
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import BackendError, Corrupt, SchemaMismatch, Unavailable
from balsam_core.model.calls import GetApps
from balsam_sqlite.engine import make_engine
from balsam_sqlite.errors import is_retryable, translate
from balsam_sqlite.init_files import APPLICATION_ID, check_file, database_file


@pytest.fixture
def db(path):
    return DBDir.open(path)


@pytest.fixture
def engine(db):
    engine = make_engine(db, "owner")
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE tally (number INTEGER NOT NULL)"))
        conn.execute(text("INSERT INTO tally VALUES (0)"))
    yield engine
    engine.dispose()


def contents(db):
    return {path.name: path.read_bytes() if path.is_file() else None for path in db.path.iterdir()}


def openings(db):
    backend = registry.load("sqlite")
    return {
        "transport": lambda: backend.open_transport(db),
        "engine": lambda: backend.create_engine(db, "owner"),
        "init": lambda: initialise(db.path),
    }


def assert_refused_untouched(db, errors, words=""):
    before = contents(db)
    for opening in openings(db).values():
        with pytest.raises(errors, match=words) as caught:
            opening()
        assert "\n" not in str(caught.value)
        assert str(database_file(db)) in str(caught.value)
        assert contents(db) == before


def in_child(function):
    child = os.fork()
    if not child:
        status = 1
        try:
            status = function() or 0
        finally:
            os._exit(status)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ------------------------------------------------------------------------------------------------------------ bad files


def foreign(path, application_id=0):
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id={application_id}")
        connection.execute("CREATE TABLE secrets (value TEXT)")
        connection.commit()


def instead(path, make, *arguments):
    path.unlink()
    make(*arguments)


def overwrite(path, start, data):
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


DAMAGE = {
    "zero length": (lambda path: path.write_bytes(b""), "is empty"),
    "one byte": (lambda path: os.truncate(path, 1), "no SQLite database"),
    "half a header": (lambda path: os.truncate(path, 50), "no SQLite database"),
    "a header": (lambda path: os.truncate(path, 100), "no SQLite database"),
    "less than a page": (lambda path: os.truncate(path, 1024), "cut short"),
    "one page": (lambda path: os.truncate(path, 4096), "cut short"),
    "half": (lambda path: os.truncate(path, path.stat().st_size // 2), "cut short"),
    "a page less": (lambda path: os.truncate(path, path.stat().st_size - 4096), "cut short"),
    "a byte less": (lambda path: os.truncate(path, path.stat().st_size - 1), "cut short"),
    "all zero": (lambda path: overwrite(path, 0, bytes(path.stat().st_size)), "no SQLite database"),
    "header zero": (lambda path: overwrite(path, 0, bytes(100)), "no SQLite database"),
    "first page zero": (lambda path: overwrite(path, 100, bytes(3996)), "damaged"),
    "text": (lambda path: path.write_text("I am a text. " * 1000), "no SQLite database"),
    "random": (lambda path: path.write_bytes(random.Random(3).randbytes(50_000)), "no SQLite database"),
    "page size": (lambda path: overwrite(path, 16, struct.pack(">H", 1000)), "no SQLite database"),
    "another program's": (foreign, "of another program"),
    "another program's with id": (lambda path: foreign(path, 0x47504B47), "of another program"),
    "link to nowhere": (lambda path: instead(path, path.symlink_to, "nowhere"), "is missing"),
    "missing": (lambda path: path.unlink(), "is missing"),
    "directory": (lambda path: instead(path, path.mkdir), "no regular file"),
    "pipe": (lambda path: instead(path, os.mkfifo, path), "no regular file"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_file_is_refused_and_left_as_it_is(db, damage, words):
    damage(database_file(db))
    assert_refused_untouched(db, Corrupt, words)


def test_file_cut_anywhere_is_refused_and_left_as_it_is(db):
    file = database_file(db)
    whole = file.read_bytes()
    numbers = random.Random(7)
    for length in sorted(numbers.randrange(len(whole)) for _ in range(60)):
        file.write_bytes(whole[:length])
        with pytest.raises(Corrupt):
            check_file(db)
        assert file.read_bytes() == whole[:length]
    file.write_bytes(whole)
    check_file(db)


def test_newer_file_is_a_schema_mismatch(db):
    overwrite(database_file(db), 60, struct.pack(">I", 99))
    assert_refused_untouched(db, SchemaMismatch, "upgrade")


def test_journal_of_a_foreign_database_is_not_played(db):
    """Opening it the ordinary way would roll the journal back and so write into the file."""
    file = database_file(db)
    foreign(file)

    def die_in_a_transaction():
        connection = sqlite3.connect(file, isolation_level=None)
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO secrets VALUES (?)", [("x" * 1000,)] * 500)
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(in_child(die_in_a_transaction)) == -signal.SIGKILL
    assert file.with_name("db.sqlite3-journal").stat().st_size > 0
    assert_refused_untouched(db, Corrupt, "of another program")


def test_damage_deep_in_the_file_is_told_when_it_is_met(db):
    file = database_file(db)
    with closing(sqlite3.connect(file)) as connection:
        pages = [page for (page,) in connection.execute("SELECT rootpage FROM sqlite_master")]
    for page in pages:
        overwrite(file, (page - 1) * 4096, bytes(4096))
    before = file.read_bytes()
    with pytest.raises(Corrupt, match="damaged"), registry.load("sqlite").open_transport(db) as transport:
        transport.run(GetApps())
    assert file.read_bytes() == before


def test_what_a_killed_process_left_in_the_log_counts(db, engine):
    engine.dispose()
    size = database_file(db).stat().st_size

    def die_after_a_commit():
        with make_engine(db, "writer").begin() as conn:
            conn.execute(text("INSERT INTO tally SELECT value FROM json_each(:some)"), {"some": str([1] * 3000)})
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(in_child(die_after_a_commit)) == -signal.SIGKILL
    assert database_file(db).with_name("db.sqlite3-wal").stat().st_size > 0
    assert database_file(db).stat().st_size == size
    check_file(db)
    again = make_engine(db, "reader")
    with again.begin() as conn:
        assert conn.execute(text("SELECT count(*) FROM tally")).scalar() == 3001
    again.dispose()


def test_looking_at_the_file_keeps_this_process_s_locks(db, engine):
    """POSIX locks go when any descriptor of the file is closed; without them another process may reset the log."""

    def others_may_lock():
        with database_file(db).open("r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)  # SQLite's shared-lock bytes
            except OSError:
                return 20
            return 10

    with engine.connect() as conn:
        conn.execute(text("SELECT * FROM tally"))
        assert ended(in_child(others_may_lock)) == 20
        check_file(db)
        make_engine(db, "writer").dispose()
        assert ended(in_child(others_may_lock)) == 20


def test_looking_while_others_write_finds_no_fault(db, engine):
    engine.dispose()

    def write_and_close():
        for number in range(60):
            engine = make_engine(db, "writer")
            with engine.begin() as conn:
                conn.execute(
                    text("INSERT INTO tally SELECT value FROM json_each(:some)"), {"some": str([number] * 500)}
                )
            engine.dispose()  # the last one to close empties the log into the file

    children = {in_child(write_and_close) for _ in range(2)}
    statuses: list[int] = []
    while len(statuses) < 2:
        check_file(db)
        for child in list(children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                children.discard(child)
                statuses.append(status)
    assert statuses == [0, 0]


def test_missing_file_is_never_made_anew(db, engine):
    engine.dispose()
    database_file(db).unlink()
    with pytest.raises(Corrupt, match="is missing"), engine.connect():
        pass
    assert not database_file(db).exists()


# --------------------------------------------------------------------------------------------------------- transactions


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("relaxed", 1)])
def test_connections_are_set_up(tmp_path, durability, level):
    db = initialise(tmp_path / "db", options={"durability": durability}).db
    engine = make_engine(db, "writer")
    with engine.connect() as conn:
        found = {
            name: conn.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "application_id")
        }
    engine.dispose()
    assert found == {
        "journal_mode": "wal",
        "synchronous": level,
        "foreign_keys": 1,
        "busy_timeout": 1_000,
        "application_id": APPLICATION_ID,
    }


def test_log_mode_that_somebody_changed_is_set_again(db):
    with closing(sqlite3.connect(database_file(db))) as connection:
        assert connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    engine = make_engine(db, "writer")
    with engine.connect() as conn:
        assert conn.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()


@contextmanager
def suppress_busy():
    """Let what a transport repeats pass: on a busy machine a lock may take longer than the second that SQLite waits."""
    try:
        yield
    except DBAPIError as err:
        if not is_retryable(err.orig):
            raise


def test_read_then_write_by_many_loses_nothing_and_is_at_most_busy(db, engine):
    engine.dispose()

    def count_up():
        engine = make_engine(db, "writer")
        done = 0
        while done < 50:
            with suppress_busy(), engine.begin() as conn:
                number = conn.execute(text("SELECT number FROM tally")).scalar_one()
                conn.execute(text("UPDATE tally SET number = :number"), {"number": number + 1})
                conn.commit()
                done += 1
        engine.dispose()

    children = [in_child(count_up) for _ in range(8)]
    assert [ended(child) for child in children] == [0] * 8
    with engine.begin() as conn:
        assert conn.execute(text("SELECT number FROM tally")).scalar() == 8 * 50


def test_reader_waits_for_no_writer_and_sees_one_state(engine):
    with engine.connect() as plain, plain.execution_options(balsam_reads=True) as reader, engine.connect() as writer:
        with writer.begin(), reader.begin():
            assert reader.execute(text("SELECT number FROM tally")).scalar() == 0
            writer.execute(text("UPDATE tally SET number = 1"))
            writer.commit()
            assert reader.execute(text("SELECT number FROM tally")).scalar() == 0
        with reader.begin():
            assert reader.execute(text("SELECT number FROM tally")).scalar() == 1


def test_engine_for_reading_does_not_write(db, engine):
    reader = make_engine(db, "reader")
    with pytest.raises(Exception, match="readonly"), reader.begin() as conn:
        conn.execute(text("UPDATE tally SET number = 1"))
    reader.dispose()


def test_savepoint_is_undone_alone(engine):
    with engine.begin() as conn:
        conn.execute(text("UPDATE tally SET number = 1"))
        inner = conn.begin_nested()
        conn.execute(text("UPDATE tally SET number = 2"))
        inner.rollback()
    with engine.begin() as conn:
        assert conn.execute(text("SELECT number FROM tally")).scalar() == 1


# --------------------------------------------------------------------------------------------------------------- errors


def driver_error(action):
    with pytest.raises(sqlite3.Error) as caught:
        action()
    return caught.value


def test_busy_is_worth_repeating(db):
    path = database_file(db)
    with closing(sqlite3.connect(path, isolation_level=None)) as one, closing(sqlite3.connect(path, timeout=0)) as two:
        one.execute("BEGIN IMMEDIATE")
        error = driver_error(lambda: two.execute("BEGIN IMMEDIATE"))
    assert is_retryable(error)
    assert translate(error) is None


def test_other_errors_are_not_repeated(db):
    with closing(sqlite3.connect(database_file(db))) as connection:
        error = driver_error(lambda: connection.execute("SELECT * FROM nowhere"))
    assert not is_retryable(error)
    assert isinstance(translate(error), BackendError)
    assert not is_retryable(ValueError("x"))
    assert translate(ValueError("x")) is None


def test_full_disk_and_read_only_file_are_unavailable(db):
    with closing(sqlite3.connect(database_file(db))) as connection:
        connection.execute("PRAGMA max_page_count=1")
        full = driver_error(lambda: connection.execute("CREATE TABLE t AS SELECT randomblob(1000000)"))
        connection.rollback()
        connection.execute("PRAGMA query_only=ON")
        read_only = driver_error(lambda: connection.execute("CREATE TABLE t (a)"))
    assert isinstance(translate(full), Unavailable)
    assert "disk is full" in str(translate(full))
    assert isinstance(translate(read_only), Unavailable)
