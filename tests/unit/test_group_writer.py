"""Group commit without sockets: each call for itself, each request id once, one server at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import time
from itertools import count

import msgspec
import pytest
from sqlalchemy import create_engine

from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import BackendError, BalsamError, error_class
from balsam_core.model.app import App
from balsam_core.model.calls import (
    EVERYTHING,
    AddApp,
    AddJobs,
    ClaimJobs,
    CountJobs,
    GetApps,
    KillJobs,
    OpenStagedInsert,
    RegisterLauncher,
    RemoveApp,
    RequestId,
    Resources,
)
from balsam_core.model.codec import decode_result, encode_call
from balsam_core.model.filters import Compare
from balsam_core.model.job import Job
from balsam_core.operations import execution
from balsam_core.proxy.server.answers import PendingWrite
from balsam_core.proxy.server.writer import BatchLostError, FencedError, GroupWriter
from balsam_sqlite.server import single_writer

CLIENT = "c" * 32
numbers = count(1)


@pytest.fixture
def db(path):
    return DBDir.open(path)


@pytest.fixture
def writer(db):
    made = GroupWriter(single_writer(db))
    yield made
    made.close()


def write(call, *, seq=None, client=CLIENT, seconds=60.0):
    number = next(numbers) if seq is None else seq
    return PendingWrite(type(call), encode_call(call), RequestId(client, number, 0), time.monotonic() + seconds)


def add(name, **fields):
    return AddJobs(jobs=[Job(name=name, command="true", **fields)])


def result(sent, answer):
    if answer.code:
        raise error_class(answer.code)(msgspec.msgpack.decode(answer.body))
    return decode_result(sent.kind, answer.body)


def run(writer, *writes):
    return [result(sent, answer) for sent, answer in zip(writes, writer.run(writes), strict=True)]


def number_of_jobs(writer):
    answer = writer.read(CountJobs, encode_call(CountJobs()))
    return msgspec.msgpack.decode(answer.body)


def test_calls_of_a_batch_are_answered_in_order(writer):
    first, second, batch = run(writer, write(add("a")), write(add("b")), write(OpenStagedInsert()))
    assert (first.first_id, second.first_id, batch) == (1, 2, 1)


def test_a_bad_call_harms_no_other(writer):
    writes = [
        write(add("good")),
        write(AddJobs(jobs=[Job(name="no such app", app="nothing")])),
        write(AddJobs(jobs=[Job(name="both", command="true", app="both")])),
        PendingWrite(AddJobs, b"\xc1 no call", RequestId(CLIENT, next(numbers), 0), time.monotonic() + 60),
        write(add("good too")),
    ]
    answers = writer.run(writes)
    assert [answer.code for answer in answers] == ["", "not-found", "invalid-input", "invalid-input", ""]
    assert number_of_jobs(writer) == 2


def test_ids_of_a_refused_call_are_given_to_the_next(writer):
    # It fails after the ids were taken: the parent doesn't exist.
    refused = AddJobs(jobs=[Job(name="child", command="true", parents=[77], workflow="new")])
    answers = writer.run([write(refused), write(add("next", workflow="new"))])
    assert answers[0].code == "not-found"
    assert msgspec.msgpack.decode(answers[1].body)["first_id"] == 1


def test_the_same_ticket_takes_effect_once_within_a_batch_and_across_batches(writer):
    sent = write(add("once"), seq=4711)
    first, again = writer.run([sent, sent])
    later = writer.run([sent])[0]
    assert first == again == later
    assert number_of_jobs(writer) == 1


def test_the_same_number_of_another_client_is_another_write(writer):
    run(writer, write(add("a"), seq=5), write(add("b"), seq=5, client="d" * 32))
    assert number_of_jobs(writer) == 2


def test_a_late_call_is_refused_and_changes_nothing(writer):
    late = write(add("late"), seconds=-1)
    with pytest.raises(BalsamError, match="after its deadline; nothing was changed"):
        run(writer, late)
    assert number_of_jobs(writer) == 0


def test_a_late_repetition_of_an_applied_call_gets_its_answer(writer):
    sent = write(add("in time"), seq=99)
    [answer] = writer.run([sent])
    assert writer.run([sent._replace(deadline=time.monotonic() - 1)]) == [answer]


def test_a_newer_server_fences_the_older(db, writer):
    run(writer, write(add("before")))
    newer = GroupWriter(single_writer(db))
    try:
        assert newer.epoch == writer.epoch + 1
        with pytest.raises(FencedError):
            writer.run([write(add("by the fenced one"))])
        run(newer, write(add("by the newer")))
        assert number_of_jobs(newer) == 2
    finally:
        newer.close()


def test_names_learnt_in_a_call_that_fails_are_forgotten(writer):
    for _ in range(3):
        refused = AddJobs(jobs=[Job(name="child", command="true", parents=[77], workflow="flow", num_nodes=7)])
        answers = writer.run([write(refused), write(add("x", workflow="flow", num_nodes=7))])
        assert [answer.code for answer in answers] == ["not-found", ""]
    answer = writer.read(CountJobs, encode_call(CountJobs(where=Compare("workflow", "eq", "flow"))))
    assert msgspec.msgpack.decode(answer.body) == 3


def test_an_app_that_is_replaced_or_removed_is_not_remembered(writer):
    job = AddJobs(jobs=[Job(app="sim", parameters={"x": 1})])
    run(writer, write(AddApp(app=App("sim", "sim {x}"))), write(job), write(job))
    run(writer, write(KillJobs(where=EVERYTHING)))  # waiting jobs would lack the new parameter
    run(writer, write(AddApp(app=App("sim", "sim {x} {y}"), replace=True)))
    answers = writer.run([write(job)])
    assert b"needs the parameters y" in answers[0].body
    run(writer, write(AddApp(app=App("other", "other"))), write(RemoveApp(name="other")))
    assert writer.run([write(AddJobs(jobs=[Job(app="other")]))])[0].code == "not-found"
    assert [
        app.name for app in msgspec.msgpack.decode(writer.read(GetApps, encode_call(GetApps())).body, type=list[App])
    ]


def test_what_sqlite_or_the_decoder_refuses_harms_no_other_call(writer):
    wide = KillJobs(where=Compare("name", "in", ["x"] * 300_000))
    name, levels = b"\xa5where", 100_000
    deep = b"\x81" + name + b"\x82\xa4type\xa3all\xa5parts\x91" * levels
    writes = [
        write(add("a")),
        write(wide),
        PendingWrite(KillJobs, deep, RequestId(CLIENT, next(numbers), 0), time.monotonic() + 60),
        write(add("b")),
    ]
    answers = writer.run(writes)
    assert [answer.code for answer in answers] == ["", "invalid-input", "invalid-input", ""]
    assert b"more than 10000 values" in answers[1].body
    assert number_of_jobs(writer) == 2


class Broken:
    """A cursor whose COMMIT fails."""

    def __init__(self, cursor, error):
        self._cursor = cursor
        self._error = error

    def execute(self, statement, *parameters):
        if statement == "COMMIT":
            raise self._error
        return self._cursor.execute(statement, *parameters)

    def __getattr__(self, name):
        return getattr(self._cursor, name)


def _error(code):
    import sqlite3

    error = sqlite3.OperationalError("made up")
    error.sqlite_errorcode = code
    return error


def test_a_commit_that_may_have_reached_the_disk_is_not_answered(writer, monkeypatch):
    import sqlite3

    monkeypatch.setattr(writer, "_cursor", Broken(writer._cursor, _error(sqlite3.SQLITE_IOERR)))
    with pytest.raises(BatchLostError):
        writer.run([write(add("a"))])


def test_a_full_disk_is_told_to_all_of_the_batch_and_passes(writer, monkeypatch):
    import sqlite3

    writes = [write(add("a")), write(add("b"))]
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_cursor", Broken(writer._cursor, _error(sqlite3.SQLITE_FULL)))
        answers = writer.run(writes)
    assert [answer.code for answer in answers] == ["unavailable"] * 2
    assert b"disk is full" in answers[0].body
    run(writer, *writes)
    assert number_of_jobs(writer) == 2


def test_a_ticket_that_is_used_for_another_call_ends_nothing(writer):
    launcher = RegisterLauncher(host="h", pid=1, boot_id="b", process_start=1.0, lease_seconds=60)
    claim = ClaimJobs(launcher=1, limit=1, resources=Resources())
    run(writer, write(launcher), write(claim, seq=5, client="f" * 32))
    forged = ClaimJobs(launcher=2**63, limit=1, resources=Resources())
    for seconds in (60, -1):
        [answer] = writer.run([write(forged, seq=5, client="f" * 32, seconds=seconds)])
        assert answer.code
    assert writer.refuse_late(write(forged, seq=5, client="f" * 32)).code
    run(writer, write(add("goes on")))


def test_a_late_call_is_not_refused_where_nobody_can_say_what_became_of_it(writer, monkeypatch):
    import sqlite3

    from sqlalchemy.exc import OperationalError

    def fail(*_):
        raise OperationalError("SELECT", None, _error(sqlite3.SQLITE_BUSY))

    sent = write(add("applied"), seq=88_888)
    run(writer, sent)
    with monkeypatch.context() as patch:
        patch.setattr(execution, "replay", fail)
        assert writer.refuse_late(sent).code == "outcome-unknown"
    assert writer.refuse_late(sent).code == ""


class Cursor(sqlite3.Cursor):
    """A cursor of an engine that knows no savepoints."""

    def execute(self, statement, parameters=()):
        if "SAVEPOINT" in statement:
            raise sqlite3.OperationalError('near "SAVEPOINT": syntax error')
        return super().execute(statement, parameters)


class UndoesNothing(Cursor):
    def execute(self, statement, parameters=()):
        return sqlite3.Cursor.execute(self, "SELECT 1" if "SAVEPOINT" in statement else statement, parameters)


class UndoesAllAfterAnError(sqlite3.Cursor):
    """ROLLBACK TO is right unless the driver has reported an error; then it ends the transaction and begins another."""

    failed = False

    def execute(self, statement, parameters=()):
        if self.failed and statement.startswith("ROLLBACK TO"):
            super().execute("ROLLBACK")
            super().execute("BEGIN IMMEDIATE")
            super().execute("SAVEPOINT balsam_call")
            self.failed = False
        try:
            return super().execute(statement, parameters)
        except sqlite3.Error:
            self.failed = True
            raise


class TakesDoubles(sqlite3.Cursor):
    def execute(self, statement, parameters=()):
        return super().execute(statement.replace("INSERT INTO meta", "INSERT OR IGNORE INTO meta"), parameters)


def engine_with(db, cursor, **fields):
    """Return what the write server needs, for an SQLite whose cursors are of this class."""

    class Connection(sqlite3.Connection):
        def cursor(self, _=None):
            return super().cursor(cursor)

    def connect():
        return sqlite3.connect(
            db.path / "db.sqlite3", isolation_level=None, check_same_thread=False, factory=Connection
        )

    return dataclasses.replace(
        single_writer(db), open_engine=lambda _: create_engine("sqlite+pysqlite://", creator=connect), **fields
    )


@pytest.mark.parametrize(
    ("cursor", "fault"),
    [
        (Cursor, 'near "SAVEPOINT": syntax error'),
        (UndoesNothing, "ROLLBACK TO SAVEPOINT doesn't undo just what"),
        (UndoesAllAfterAnError, "ROLLBACK TO SAVEPOINT after an error doesn't undo just what"),
        (TakesDoubles, "stores a second row with the key of another"),
    ],
)
def test_an_engine_whose_savepoints_do_not_work_is_refused(db, cursor, fault):
    with pytest.raises(BackendError, match=fault) as refused:
        GroupWriter(engine_with(db, cursor))
    assert cursor is TakesDoubles or "savepoints=False" in str(refused.value)
    writer = GroupWriter(single_writer(db))  # nothing of the trial is left
    try:
        assert writer.epoch == 1
        assert list(writer._conn.exec_driver_sql("SELECT name FROM meta WHERE value = ''")) == []
    finally:
        writer.close()


@pytest.fixture
def plain_writer(db):
    made = GroupWriter(engine_with(db, Cursor, savepoints=False))
    yield made
    made.close()


def test_without_savepoints_each_call_has_its_own_transaction(plain_writer):
    assert plain_writer.most_calls == 1
    failing = AddJobs(jobs=[Job(name="a", command="true"), Job(name="child", command="true", parents=[77])])
    sent = [write(add("good")), write(failing), write(failing), write(add("good too"))]
    answers = [plain_writer.run([one])[0] for one in [*sent, *sent]]  # each is sent again
    assert [answer.code for answer in answers] == ["", "not-found", "not-found", ""] * 2
    assert answers[4:] == answers[:4]
    assert number_of_jobs(plain_writer) == 2


def test_without_savepoints_an_error_of_the_driver_undoes_its_call(plain_writer):
    run(plain_writer, write(add("first")))
    plain_writer._conn.exec_driver_sql("UPDATE counters SET last = 0 WHERE name = 'jobs'")  # so the next id is taken
    plain_writer._cache.rolled_back()
    sent = write(AddJobs(jobs=[Job(name="second", command="true", workflow="new")]))
    assert [plain_writer.run([sent])[0].code for _ in range(2)] == ["conflict"] * 2
    plain_writer._conn.exec_driver_sql("UPDATE counters SET last = 1 WHERE name = 'jobs'")
    plain_writer._cache.rolled_back()
    run(plain_writer, write(add("third", workflow="new")))
    assert number_of_jobs(plain_writer) == 2


def test_without_savepoints_a_newer_server_fences_the_older(db, plain_writer):
    newer = GroupWriter(single_writer(db))
    try:
        with pytest.raises(FencedError):
            plain_writer.run([write(add("by the fenced one"))])
        assert number_of_jobs(newer) == 0
    finally:
        newer.close()


def test_a_statement_that_is_refused_ends_no_server_without_is_fatal(db):
    writer = GroupWriter(dataclasses.replace(single_writer(db), is_fatal=None))
    run(writer, write(add("before")))
    with contextlib.closing(sqlite3.connect(db.path / "db.sqlite3")) as connection:
        connection.execute("ALTER TABLE jobs RENAME COLUMN command TO renamed")
        with pytest.raises(BackendError, match="column named command"):
            run(writer, write(add("refused")))
        connection.execute("ALTER TABLE jobs RENAME COLUMN renamed TO command")
        connection.execute("ALTER TABLE meta RENAME TO gone")
        with pytest.raises(BackendError, match="meta"):
            run(writer, write(add("refused")))
        connection.execute("ALTER TABLE gone RENAME TO meta")
    run(writer, write(add("after")))
    assert number_of_jobs(writer) == 2
    writer.close()
