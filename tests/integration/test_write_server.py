"""SQLite through ``balsam dbserver``: every program finds the server, and none goes past it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import msgspec
import pytest
from balsam_program import child, here

from balsam_core import App, Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.dbdir import address
from balsam_core.errors import (
    BalsamError,
    Conflict,
    DBDirError,
    InvalidInput,
    NotFound,
    SchemaMismatch,
    ServerNotRunning,
    TooLarge,
    Unavailable,
)
from balsam_core.model.calls import MOST_JOBS, AddJobs
from balsam_core.proxy import protocol
from balsam_core.system import filesystems
from balsam_core.watchdog import control

LOADED = """
import json, sys
sys.argv = ["balsam", *json.loads(sys.argv[1])]
from balsam_core.cli import main
code = main()
sys.stdout.flush()
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def db_dir(tmp_path):
    return initialise(tmp_path / "db").db


@pytest.fixture
def served(db_dir):
    control.start(db_dir)
    yield db_dir
    control.stop(db_dir)


def job(name, **fields):
    return Job(name=name, command="true", **fields)


def names(db):
    return sorted(row[0] for row in db.jobs.rows("name"))


def test_everything_goes_through_the_server(served):
    with open_db(served.path) as db:
        before = db.transport.server_status()
        db.apps.add(App("sim", "sim.x {x}"))
        parent = Job(app="sim", parameters={"x": 1}, name="parent")
        db.jobs.add([parent, job("child", parents=[parent])])
        assert names(db) == ["child", "parent"]
        assert db.jobs.where(name="parent").kill() == 1
        assert db.jobs.states() == {"USER_KILLED": 1, "PARENT_KILLED": 1}
        with pytest.raises(NotFound):
            db.jobs.get(77)
        after = db.transport.server_status()
    assert after.calls - before.calls >= 6
    assert after.clients == 1
    assert after.epoch == 1


def test_errors_are_the_same_with_and_without_a_server(served, tmp_path):
    def errors(db):
        found = []
        for attempt in (
            lambda: db.apps.add(App("sim", "other")),
            lambda: db.jobs.add(Job(app="nothing")),
            lambda: db.jobs.add(Job(app="sim")),
            lambda: db.jobs.add(job("x", num_nodes=-1)),
            lambda: db.jobs.add_dependency(1, 1),
            lambda: db.jobs.get(4711),
        ):
            with pytest.raises((Conflict, NotFound, InvalidInput)) as caught:
                attempt()
            found.append((type(caught.value), str(caught.value)))
        return found

    both = []
    for path in (served.path, initialise(tmp_path / "direct").db.path):
        with open_db(path) as db:
            db.apps.add(App("sim", "sim.x {x}"))
            both.append(errors(db))
    assert both[0] == both[1]


def test_the_command_line_uses_the_server_and_loads_no_sqlalchemy(served):
    child.good("job", "--name", "a", "--command", "true", db=served.path)
    for words in (["ls"], ["status"], ["ls", "--by-states", "-o", "json"], ["show", "1"], ["run", "--", "true"]):
        done = subprocess.run(
            [sys.executable, "-c", LOADED, msgspec.json.encode(words).decode()],
            env={**os.environ, "BALSAM_DB_PATH": str(served.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        modules = set(msgspec.json.decode(done.stderr.splitlines()[-1]))
        assert "zmq" in modules
        assert not modules & {"sqlalchemy", "sqlite3", "rich", "alembic", "asyncio"}


def test_a_program_that_had_the_file_open_finds_the_server_at_its_next_call(db_dir):
    with open_db(db_dir.path) as db:
        db.jobs.add(job("direct"))
        assert db.transport.server_status() is None
        control.start(db_dir)
        try:
            db.jobs.add(job("served"))
            assert db.transport.server_status().calls == 1
        finally:
            control.stop(db_dir)
        db.jobs.add(job("direct again"))
        assert db.transport.server_status() is None
        assert names(db) == ["direct", "direct again", "served"]


def test_a_transaction_that_begins_after_the_publication_is_given_up(db_dir, monkeypatch):
    """The server is published between the look at the address and the transaction: nothing may be written."""
    with open_db(db_dir.path) as db:
        db.jobs.add(job("before"))
        native = db.transport._direct
        connect = native._connect

        def publish_first(deadline):
            monkeypatch.undo()
            control.start(db_dir)
            return connect(deadline)

        monkeypatch.setattr(native, "_connect", publish_first)
        try:
            db.jobs.add(job("meanwhile"))
            assert db.transport.server_status().calls == 1
            assert names(db) == ["before", "meanwhile"]
        finally:
            control.stop(db_dir)


def test_a_stale_address_is_an_error_and_never_the_file(served):
    published = address.read(served)
    control.stop(served)
    address.write(served, published)
    line = here.refused("ls", db=served.path, code=Unavailable.exit_code)
    assert "is not there: start it with balsam dbserver --path=" in line
    control.start(served)
    here.good("ls", db=served.path)


def test_a_loopback_address_of_another_host_is_told_at_once(served):
    published = address.read(served)
    address.write(served, msgspec.structs.replace(published, node="elsewhere"))
    line = here.refused("ls", db=served.path, code=Unavailable.exit_code)
    assert "listens only on its own host, elsewhere" in line
    assert "balsam dbserver --host 0.0.0.0" in line


def test_a_million_jobs_are_read_beside_the_server(served):
    with open_db(served.path) as db:
        db.jobs.add(job(f"j{n}") for n in range(2 * MOST_JOBS + 10))
        before = db.transport.server_status().calls
        assert len(list(db.jobs.rows("id"))) == 2 * MOST_JOBS + 10
        assert db.transport.server_status().calls - before == 1  # the first page
        assert len(list(db.jobs.order_by("name", descending=True).rows("id"))) == 2 * MOST_JOBS + 10


def test_jobs_that_together_are_too_large_for_a_message_are_sent_in_parts(served):
    size = 900_000
    many = [job(f"big{n}", data={"text": "x" * size}) for n in range(2 * protocol.LARGEST_REQUEST // size)]
    many.append(job("child", parents=many[:3]))
    with open_db(served.path) as db:
        ids = db.jobs.add(many)
        assert [one.id for one in many] == list(ids)
        assert db.jobs.get(many[-1].id).parents == [one.id for one in many[:3]]
        giant = job("giant", data={str(n): "x" * size for n in range(20)})
        with pytest.raises(TooLarge, match="add_jobs is too large"):
            db.jobs.add(giant)
        with pytest.raises(TooLarge):
            db.jobs.add([job("first"), giant])
        assert db.jobs.count() == len(many)
        assert giant.id is None


def test_threads_share_a_connection(served):
    failures = []
    with open_db(served.path) as db:

        def add(number):
            try:
                for n in range(20):
                    db.jobs.add(job(f"{number}-{n}"))
            except BalsamError as err:
                failures.append(err)

        threads = [threading.Thread(target=add, args=(number,)) for number in range(80)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert names(db) == sorted(f"{number}-{n}" for number in range(80) for n in range(20))


def test_a_forked_process_is_refused(served):
    with open_db(served.path) as db:
        db.jobs.count()
        if not (pid := os.fork()):
            try:
                db.jobs.add(job("from the child"))
            except Unavailable as err:
                os._exit(0 if "after a fork" in str(err) else 2)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        db.jobs.add(job("from the parent"))
        assert names(db) == ["from the parent"]


def test_a_closed_database_says_so(served):
    db = open_db(served.path)
    db.jobs.count()
    db.close()
    db.close()
    with pytest.raises(Unavailable, match="is closed"):
        db.jobs.count()


@pytest.mark.parametrize("field", ["PROTOCOL", "SCHEMA"])
def test_another_version_is_told_what_to_restart(served, monkeypatch, field):
    from balsam_core.proxy.client import channel

    monkeypatch.setattr(channel, field, "9999" if field == "SCHEMA" else 99)
    with (
        open_db(served.path) as db,
        pytest.raises(SchemaMismatch, match=rf"{field.lower()} .* against 99.*restart the server"),
    ):
        db.jobs.count()


def test_without_the_key_nobody_gets_in(served):
    key = served.keys / "client.key"
    content = key.read_bytes()
    key.unlink()
    assert "is missing" in here.refused("ls", db=served.path, code=DBDirError.exit_code)
    key.write_bytes(content)
    key.chmod(0o640)
    assert "chmod 600" in here.refused("ls", db=served.path, code=DBDirError.exit_code)
    key.chmod(0o600)
    key.write_bytes(content[:-20])
    assert "is damaged" in here.refused("ls", db=served.path, code=DBDirError.exit_code)


def test_another_key_is_refused_and_told(served):
    import zmq

    keys = msgspec.json.decode((served.keys / "client.key").read_bytes())
    public, secret = zmq.curve_keypair()
    (served.keys / "client.key").write_bytes(
        msgspec.json.encode({**keys, "public": public.decode(), "secret": secret.decode()})
    )
    line = here.refused("ls", db=served.path, code=Unavailable.exit_code)
    assert "doesn't accept the key" in line


def test_another_server_at_the_port_is_told_and_gets_nothing(served):
    import zmq

    keys = msgspec.json.decode((served.keys / "client.key").read_bytes())
    (served.keys / "client.key").write_bytes(msgspec.json.encode({**keys, "server": zmq.curve_keypair()[0].decode()}))
    line = here.refused("ls", db=served.path, code=Unavailable.exit_code)
    assert "is not the server of" in line


def test_keys_are_private_and_nowhere_else(served):
    assert served.keys.stat().st_mode & 0o777 == 0o700
    secrets = []
    for file in served.keys.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
        keys = msgspec.json.decode(file.read_bytes())
        secrets.append(keys["secret"].encode())
    texts = [file.read_bytes() for file in [*served.log.iterdir(), served.address_file, served.config_file]]
    assert not [secret for secret in secrets for text in texts if secret in text]


def test_a_write_in_flight_when_the_server_stops_takes_effect_once(served):
    """Clients write while the server is stopped and started: some calls are sent to it and done without it."""
    stop = threading.Event()
    added, failures = [], []

    def add(number):
        with open_db(served.path) as db:
            n = 0
            while not stop.is_set():
                try:
                    db.jobs.add(job(f"{number}-{n}"))
                    added.append(f"{number}-{n}")
                except BalsamError as err:
                    failures.append(err)
                n += 1

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        control.stop(served)
        control.start(served)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    with open_db(served.path) as db:
        assert names(db) == sorted(added)


def test_an_engine_that_nobody_else_may_open_is_not_opened_directly(db_dir, monkeypatch):
    monkeypatch.setattr(filesystems, "statfs_magic", lambda path: 0x6969)
    with pytest.raises(ServerNotRunning, match=r"is on nfs.*run balsam dbserver"):
        open_db(db_dir.path)


def test_calls_are_replayed_exactly(served):
    """The answer to a write that is sent again is the first one's, byte for byte."""
    import time

    from balsam_core.backends import registry
    from balsam_core.model.codec import encode_call

    data = encode_call(AddJobs(jobs=[job("once")]))
    with (
        registry.load("sqlite").open_transport(served) as transport,
        transport._session.new_request_id() as request_id,
    ):
        answers = {transport.perform(AddJobs, data, request_id, time.monotonic() + 30) for _ in range(3)}
    assert len(answers) == 1
    with open_db(served.path) as db:
        assert names(db) == ["once"]


def test_the_status_of_a_closed_or_forked_connection_is_refused(served):
    with open_db(served.path) as db:
        db.info()
        child = os.fork()
        if not child:
            try:
                db.transport.server_status()
            except Unavailable:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert db.transport.server_status() is not None
    with pytest.raises(Unavailable, match="is closed"):
        db.transport.server_status()
