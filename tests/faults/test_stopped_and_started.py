"""The server is stopped, copied, delayed, or kept waiting while clients go on: what is neither a crash nor a fault."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
import time

import msgspec
import pytest
from amounts import at_most
from exact import exact_report, writers
from served_db import ServedDB
from tcp_faults import FaultyLink

from balsam_core import Job, open_db
from balsam_core.backends import registry
from balsam_core.dbdir import address
from balsam_core.errors import BalsamError, Unavailable
from balsam_core.model.calls import WINDOW, AddJobs, CountJobs
from balsam_core.model.codec import encode_call
from balsam_core.model.filters import Compare
from balsam_core.testing.tools import wait_until


def test_clients_write_while_the_server_comes_and_goes(served, tmp_path, amount, verdict):
    """The server is stopped and started under writers: each write takes effect once, with or without it (S01)."""
    stops = amount(6, 60)
    with writers(served.path, 12, tmp_path) as clients:
        clients.begin()
        for _ in range(stops):
            served.stop()
            served.start()
        clients.stop()
        clients.finish()
        journals = clients.journals
    report = exact_report(served, journals)
    verdict("S01", "server stopped and started under 12 writers", f"{stops} times: {report}")


def test_a_copy_that_arrives_after_its_answer_was_forgotten_changes_nothing(served, verdict):
    """A copy of an acknowledged write comes long after it, over another connection: it changes nothing (S02)."""
    published = served.address
    with FaultyLink(("127.0.0.1", published.port)) as link:
        address.write(served.dir, _at(published, link.port))
        with registry.load("sqlite").open_transport(served.dir) as transport:
            transport.run(AddJobs(jobs=[Job(name="warm", command="true")]))
            link.swallow_replies(1)  # so it is sent twice
            transport.run(AddJobs(jobs=[Job(name="victim", command="true")]))
            late = encode_call(AddJobs(jobs=[Job(name="victim", command="true")]))
            with transport._session.new_request_id() as request_id:
                transport.perform(AddJobs, late, request_id, time.monotonic() + 30)
            for n in range(3 * WINDOW):
                transport.run(AddJobs(jobs=[Job(name=f"later{n}", command="true")]))
            with contextlib.suppress(BalsamError):
                transport.perform(AddJobs, late, request_id, time.monotonic() + 30)
            assert transport.run(CountJobs(where=Compare("name", "eq", "victim"))) == 2  # each of them once
    verdict("S02", "copy of a write delayed past 3 windows", "carried out once")


def _at(published, port):
    return msgspec.structs.replace(published, port=port)


def test_a_program_that_holds_the_database_holds_up_writes_only(served, verdict):
    """Another program holds the database: reads are answered, a late write is refused, the others are done (S03)."""
    with open_db(served.path) as db, contextlib.closing(sqlite3.connect(served.path / "db.sqlite3")) as other:
        db.jobs.add(Job(name="before", command="true"))
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        outcome = []

        def write():
            outcome.append(db.jobs.add(Job(name="held up", command="true")))

        writing = threading.Thread(target=write)
        writing.start()
        begun = time.monotonic()
        assert [row[0] for row in db.jobs.rows("name")] == ["before"]
        assert db.transport.server_status().calls >= 2
        with pytest.raises(Unavailable, match="after its deadline; nothing was changed"):
            db.run(AddJobs(jobs=[Job(name="late", command="true")]), timeout=0.5)
        took = time.monotonic() - begun
        other.execute("ROLLBACK")
        writing.join(30)
        assert len(outcome[0]) == 1
        assert sorted(row[0] for row in db.jobs.rows("name")) == ["before", "held up"]
    assert took < at_most(5)
    verdict(
        "S03", "another program holds the database", "reads and status answered, a late write refused, the rest done"
    )


def test_a_server_that_must_stop_does_not_wait_for_the_database(served):
    with contextlib.closing(sqlite3.connect(served.path / "db.sqlite3")) as other, open_db(served.path) as db:
        db.jobs.count()
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        writing = threading.Thread(target=lambda: db.jobs.add(Job(name="a", command="true")))
        writing.start()
        wait_until(lambda: any("holds the database" in file.read_text() for file in served.dir.log.glob("server_*")))
        begun = time.monotonic()
        served.stop()
        assert time.monotonic() - begun < at_most(5)
        other.execute("ROLLBACK")
        writing.join(30)
        assert db.jobs.count() == 1


SLOW_READS = """
import sys, time

if "balsam_core.proxy" in sys.orig_argv:
    from balsam_core.model.calls import CountJobs
    from balsam_core.operations import execution

    count = execution.operation_of(CountJobs())

    def slow(tx, call):
        with open({log!r}, "a") as file:
            file.write(".")
        time.sleep({seconds})
        return count(tx, call)

    execution._OPERATIONS[CountJobs] = slow
"""


@pytest.mark.parametrize(("seconds", "clients"), [(5.0, 1), (0.2, 40)])
def test_slow_reads_are_answered_however_long_the_queue(make_served, tmp_path, verdict, seconds, clients):
    """Reads take longer than clients wait before they send them again: the copies aren't run as well (S04).

    A client sends a read again after 1, 3 and 7 seconds. Where its answer leaves the server at that very moment, the
    answer is lost with the old connection and the read runs again; of 40 reads this hits few.
    """
    site = tmp_path / "site"
    site.mkdir()
    log = tmp_path / "reads"
    (site / "sitecustomize.py").write_text(SLOW_READS.format(seconds=seconds, log=str(log)))
    served = make_served(env={"PYTHONPATH": str(site)})
    served.start()
    done, failures = [], []

    def count():
        try:
            begun = time.monotonic()
            db.run(CountJobs(), timeout=60)
            done.append(time.monotonic() - begun)
        except BalsamError as err:
            failures.append(err)

    with open_db(served.path) as db:
        threads = [threading.Thread(target=count) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert clients <= len(log.read_text()) <= clients + clients // 10
    assert min(done) >= seconds
    verdict("S04", f"{clients} reads of {seconds:g} s at once", f"all answered, the last after {max(done):.1f} s")


def test_a_copy_of_a_served_directory_is_not_served(served, tmp_path, verdict):
    """A directory is copied while it is served: the copy is a DB of its own, without a server (S05)."""
    with open_db(served.path) as db:
        db.jobs.add(Job(name="original", command="true"))
    shutil.copytree(served.path, tmp_path / "copy", symlinks=True)
    with open_db(tmp_path / "copy") as copy:
        copy.jobs.add(Job(name="in the copy", command="true"))
        assert copy.transport.server_status() is None
    with open_db(served.path) as db:
        assert [row[0] for row in db.jobs.rows("name")] == ["original"]
    twin = ServedDB(tmp_path / "copy")
    try:
        assert "no server" in twin.command("--stop").out + twin.command("--stop").out
        assert twin.start().port != served.address.port
        served.lease  # noqa: B018  (it is still there)
        with open_db(tmp_path / "copy") as copy:
            assert sorted(row[0] for row in copy.jobs.rows("name")) == ["in the copy", "original"]
    finally:
        twin.close()
    with open_db(served.path) as db:
        assert db.transport.server_status() is not None
    verdict("S05", "directory copied while it is served", "the copy is a DB of its own")
