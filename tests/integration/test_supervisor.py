"""The watchdog's loop, driven in this process turn by turn, around real servers."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import signal
import socket
import time

import msgspec
import pytest
from toy_backend import toys

from balsam_core.backends import registry
from balsam_core.dbdir import address
from balsam_core.dbdir.lease import LeaseObserver, lease_file, new_lease
from balsam_core.errors import (
    AddressError,
    BackendError,
    Conflict,
    DBDirError,
    InvalidInput,
    SchemaMismatch,
    Unavailable,
)
from balsam_core.system import network
from balsam_core.system.processes import is_alive, send_signal, start_of
from balsam_core.system.signals import StopRequests
from balsam_core.testing.tools import wait_until
from balsam_core.watchdog import control, failures, health, publisher, supervisor
from balsam_core.watchdog.options import ServerOptions
from balsam_core.watchdog.supervisor import Supervisor, SupervisorOutcome, SupervisorState
from balsam_core.watchdog.takeover import acquire


@pytest.fixture
def toy(tmp_path, monkeypatch):
    with toys(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def db(toy):
    return toy()


class Driven:
    """A supervisor that runs while a test waits."""

    def __init__(self, db, stops, options):
        backend = registry.load(db.db_type)
        held = acquire(db, new_lease(listen=options.host, port=options.port), LeaseObserver(db))
        self.db = db
        self.held = held
        self.told = []
        self.loop = Supervisor(db, backend, held, options, stops, self.told.append)

    def until(self, condition, what="the condition"):
        def turn():
            self.loop.run_once()
            return condition()

        return wait_until(turn, what)

    def address(self):
        return address.read(self.db)

    def until_published(self, after=0):
        """Run until an address with a higher number is published, and never none in between."""

        def newer():
            found = self.address()
            assert found is not None or not after
            return found if found and found.generation > after else None

        return self.until(newer, "the publication")

    def kill_server(self, number=signal.SIGKILL):
        lease = self.held.lease
        assert send_signal(lease.child_pid, lease.child_start, number)


@pytest.fixture
def drive(db):
    made = []
    with StopRequests() as stops:

        def make(**options):
            driven = Driven(db, stops, ServerOptions(**options))
            made.append(driven)
            return driven

        yield make
        for driven in made:
            if driven.loop.server is not None:
                driven.loop.server.kill()
                wait_until(driven.loop.server.ended)


def answers(found):
    with socket.create_connection((found.host, found.port), timeout=60) as connection:
        return connection.recv(5) == b"ready"


def test_a_ready_server_is_published_with_the_proof_of_who_it_is(drive, db):
    driven = drive()
    found = driven.until_published()
    assert answers(found)
    assert (found.host, found.protocol, found.generation, found.details) == ("127.0.0.1", "toy/1", 1, {"colour": "red"})
    assert found.start_time == start_of(found.pid)
    assert driven.told == [found]
    lease = LeaseObserver(db).observe().lease
    assert (lease.child_pid, lease.generation, lease.stop) == (found.pid, 1, [(15, 2.0)])
    assert is_alive(lease.child_pid, lease.child_start)


def test_a_killed_server_is_replaced_at_once_at_the_same_port(drive):
    driven = drive()
    first = driven.until_published()
    driven.kill_server()
    began = time.monotonic()
    second = driven.until_published(after=first.generation)
    assert time.monotonic() - began < 5
    assert second.port == first.port
    assert second.pid != first.pid
    assert answers(second)
    assert driven.held.lease.restarts == 1
    assert driven.told == [first]


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"{}", b'{"state": "stopped"}', b'{"format": 9}'])
def test_a_lost_address_is_published_again(drive, db, content):
    driven = drive()
    first = driven.until_published()
    if content is None:
        db.address_file.unlink()
    else:
        db.address_file.write_bytes(content)
    began = time.monotonic()

    def published():
        try:
            return driven.address() == first
        except (AddressError, SchemaMismatch):
            return False

    driven.until(published)
    assert time.monotonic() - began < 5 * publisher.LOOK_EVERY
    assert answers(first), "the server goes on"
    assert driven.held.lease.restarts == 0


def test_an_address_that_names_the_server_by_another_way_stays(drive, db):
    driven = drive()
    first = driven.until_published()
    tunnel = msgspec.structs.replace(first, host="gateway.example.org", port=4321)
    address.write(db, tunnel)
    deadline = time.monotonic() + 3 * publisher.LOOK_EVERY
    driven.until(lambda: time.monotonic() > deadline)
    assert driven.address() == tunnel
    address.write(db, msgspec.structs.replace(first, pid=first.pid + 1))
    driven.until(lambda: driven.address() == first)


def test_an_address_that_can_not_be_written_again_does_not_end_the_server(drive, db, caplog):
    driven = drive()
    first = driven.until_published()
    db.address_file.unlink()
    db.address_file.mkdir()
    driven.until(lambda: "can't be published again" in caplog.text)
    assert answers(first)
    db.address_file.rmdir()
    driven.until(db.address_file.exists)
    assert driven.address() == first
    assert driven.held.lease.restarts == 0


def test_a_taken_port_is_given_up(drive):
    driven = drive()
    first = driven.until_published()
    driven.loop.server.kill()
    wait_until(driven.loop.server.ended)
    with socket.create_server(("127.0.0.1", first.port)):
        second = driven.until_published(after=first.generation)
    assert second.port != first.port
    assert answers(second)


def test_a_fixed_port_is_waited_for(drive, db):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port} .* is taken"):
            drive(port=port).loop.run()
    driven = drive(port=port)
    first = driven.until_published()
    assert first.port == port
    driven.loop.server.kill()
    wait_until(driven.loop.server.ended)
    with socket.create_server(("127.0.0.1", port)):
        driven.until(lambda: driven.loop.failures >= 3)
        assert driven.address() == first
    assert driven.until_published(after=first.generation).port == port


def test_a_crash_loop_never_ends_and_gets_slower(drive, db, caplog):
    driven = drive()
    first = driven.until_published()
    (db.path / "fail").write_text("the disk is broken")
    driven.kill_server()
    driven.until(lambda: driven.loop.failures >= 5)
    pauses = [record.args[3] for record in caplog.records if "started again" in record.message]
    assert pauses[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert "the disk is broken" in caplog.text
    assert driven.address() == first
    (db.path / "fail").unlink()
    driven.until_published(after=first.generation)


@pytest.fixture
def at_once(monkeypatch):
    """Failures count as soon as there are enough of them."""
    monkeypatch.setattr(failures, "PERMANENT_SECONDS", 0.0)
    monkeypatch.setattr(failures, "REPEATED_SECONDS", 0.0)


def break_server(driven, text, code=1):
    (driven.db.path / "fail").write_text(text)
    (driven.db.path / "code").write_text(str(code))
    driven.kill_server()


def assert_given_up(driven, error, said):
    driven.until(lambda: driven.loop.outcome is SupervisorOutcome.GIVEN_UP)
    db = driven.db
    assert not lease_file(db).exists()
    with pytest.raises(error, match=said) as caught:
        address.read(db)
    text = str(caught.value)
    assert text.startswith(f"the server of {db.path} was given up: it failed ")
    assert text.endswith(f"then start it again with balsam dbserver --path={db.path}")
    assert "\n" not in text
    assert control.describe(db).state == "failed"


@pytest.mark.parametrize(
    ("code", "error"), [(8, DBDirError), (9, SchemaMismatch), (12, BackendError), (4, BackendError)]
)
def test_a_server_that_says_it_can_not_work_is_given_up(drive, code, error):
    driven = drive()
    driven.until_published()
    began = time.monotonic()
    break_server(driven, "Error: no table of that name", code)
    assert_given_up(driven, error, f"ended with exit code {code} after .*: no table of that name")
    assert failures.PERMANENT_SECONDS <= time.monotonic() - began < 30


def test_other_failures_must_repeat_themselves(drive, at_once):
    driven = drive()
    driven.until_published()
    break_server(driven, "process PID: no idea")
    driven.until(lambda: driven.loop.failures >= failures.REPEATED_FAILURES)  # the kill is the first
    assert driven.loop.outcome is None
    assert_given_up(driven, BackendError, "failed 5 times .* no idea")


def test_a_minute_is_waited_for_other_failures(drive):
    driven = drive()
    driven.until_published()
    break_server(driven, "no idea")
    driven.until(lambda: driven.loop.failures >= failures.REPEATED_FAILURES + 2)
    assert driven.loop.outcome is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Error: the database can't be reached", 6),
        ("[Errno 28] No space left on device", 1),
        ("FATAL: could not map anonymous shared memory: Cannot allocate memory", 1),
        ("could not bind: Address already in use", 12),
        ("Error: db.sqlite3 can't be read: Too many open files", 8),
        ("Error: db.sqlite3 can't be read (unable to open database file)", 8),
        ("shut down", 0),
    ],
)
def test_what_may_pass_is_never_given_up(drive, at_once, text, code):
    driven = drive()
    first = driven.until_published()
    break_server(driven, text, code)
    driven.until(lambda: driven.loop.failures >= failures.REPEATED_FAILURES + 2)
    assert driven.loop.outcome is None
    lease = LeaseObserver(driven.db).observe().lease
    assert f"exit code {code}" in lease.failure
    assert lease.restarts >= failures.REPEATED_FAILURES
    (driven.db.path / "fail").unlink()
    assert answers(driven.until_published(after=first.generation))


def test_killing_a_server_again_and_again_never_ends_it(drive, at_once):
    driven = drive()
    generation = driven.until_published().generation
    for _ in range(failures.REPEATED_FAILURES + 2):
        driven.kill_server()
        generation = driven.until_published(after=generation).generation


def test_a_server_that_fails_twice_and_then_works_is_not_given_up(drive, at_once, monkeypatch):
    monkeypatch.setattr(supervisor, "WORKS_AFTER", 0.0)
    monkeypatch.setattr(supervisor, "HEALTHY_AFTER", 600.0)
    driven = drive()
    generation = driven.until_published().generation
    for rounds in range(1, 4):
        break_server(driven, "Error: no table", 12)
        wanted = 3 * rounds  # the kill, and two failures
        driven.until(lambda wanted=wanted: driven.loop.failures == wanted)
        assert "exit code 12" in LeaseObserver(driven.db).observe().lease.failure
        (driven.db.path / "fail").unlink()
        generation = driven.until_published(after=generation).generation
    assert driven.loop.outcome is None


def test_a_failure_that_can_not_be_told_is_no_end(drive, db, at_once, caplog):
    driven = drive()
    driven.until_published()
    db.address_file.unlink()
    db.address_file.mkdir()
    break_server(driven, "Error: no table", 12)
    driven.until(lambda: "it can't be told" in caplog.text)
    assert driven.loop.outcome is None
    db.address_file.rmdir()
    assert_given_up(driven, BackendError, "no table")


def test_a_failure_after_healthy_service_counts_as_the_first(drive, monkeypatch):
    monkeypatch.setattr(supervisor, "HEALTHY_AFTER", 0.0)
    driven = drive()
    generation = 0
    for _ in range(3):
        generation = driven.until_published(after=generation).generation
        assert driven.loop.failures <= 1
        driven.kill_server()


@pytest.fixture
def fast_health(monkeypatch):
    for name, seconds in {
        "PERIOD": 0.05, "PROBE_TIMEOUT": 0.2, "SILENT_PERIOD": 0.05, "SILENT_PROBE_TIMEOUT": 0.1, "MAX_SILENCE": 1.0,
        "MAX_IDLE": 0.5, "MAX_BUSY_SILENCE": 600.0,
    }.items():  # fmt: skip
        monkeypatch.setattr(health, name, seconds)


def test_a_frozen_server_is_replaced(drive, fast_health):
    driven = drive()
    first = driven.until_published()
    driven.kill_server(signal.SIGSTOP)
    second = driven.until_published(after=first.generation)
    assert second.pid != first.pid
    assert answers(second)


def test_a_mute_server_is_replaced_even_if_it_ignores_signals(drive, db, fast_health, monkeypatch):
    monkeypatch.setattr(supervisor, "QUICK_STOP", 0.1)
    (db.path / "deaf").touch()
    driven = drive()
    first = driven.until_published()
    (db.path / "mute").touch()
    driven.until(lambda: driven.loop.failures)
    (db.path / "mute").unlink()
    assert driven.until_published(after=first.generation).pid != first.pid


def test_a_busy_server_is_left_alone(drive, db, fast_health, monkeypatch):
    driven = drive()
    first = driven.until_published()
    (db.path / "busy").touch()
    silent_until = time.monotonic() + 3 * health.MAX_SILENCE
    driven.until(lambda: time.monotonic() > silent_until)
    assert driven.loop.failures == 0
    assert driven.address() == first
    monkeypatch.setattr(health, "MAX_BUSY_SILENCE", 1.0)
    driven.until(lambda: driven.loop.failures)
    (db.path / "busy").unlink()


def test_replaced_watchdog_ends_its_server_and_keeps_off_the_address(drive, db):
    driven = drive()
    found = driven.until_published()
    lease = driven.held.lease
    other = msgspec.structs.replace(new_lease(), node="other")
    lease_file(db).write_bytes(msgspec.json.encode(other))
    driven.loop._next_heartbeat_at = 0.0
    driven.loop.run_once()
    assert driven.loop.outcome is SupervisorOutcome.REPLACED
    assert not is_alive(lease.child_pid, lease.child_start)
    assert driven.address() == found
    assert LeaseObserver(db).observe().lease == other


def test_a_replaced_watchdog_starts_and_publishes_nothing(drive, db, monkeypatch):
    driven = drive()
    driven.until(lambda: driven.loop.server)
    lease_file(db).unlink()
    driven.until(lambda: driven.loop.outcome)
    assert driven.address() is None
    driven = drive()
    lease_file(db).unlink()
    driven.loop._next_heartbeat_at = time.monotonic() + 60
    driven.loop.run_once()
    assert driven.loop.outcome is SupervisorOutcome.REPLACED
    assert driven.loop.server is None


def test_without_a_refreshed_lease_the_server_is_stopped(drive, monkeypatch):
    driven = drive()
    first = driven.until_published()

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("balsam_core.dbdir.lease.read_lease", broken)
        driven.loop._next_heartbeat_at = 0.0
        driven.loop.run_once()
        assert driven.loop.server is not None
        driven.loop._last_heartbeat -= 60
        driven.loop._next_heartbeat_at = 0.0
        driven.loop.run_once()
        assert driven.loop.server is None
        driven.until(lambda: driven.loop.failures >= 3)
    driven.until_published(after=first.generation)


def test_a_full_disk_delays_the_address_and_ends_nothing(drive, monkeypatch):
    driven = drive()
    first = driven.until_published()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("balsam_core.dbdir.address.atomic_write", full)
        patch.setattr("balsam_core.dbdir.lease.atomic_write", full)
        driven.kill_server()
        driven.until(lambda: driven.loop.state is SupervisorState.READY)
        assert driven.address() == first
    second = driven.until_published(after=first.generation)
    assert answers(second)


def test_a_first_start_that_fails_three_times_is_given_up(drive, db):
    (db.path / "fail").write_text("no such luck")
    driven = drive()
    with pytest.raises(Unavailable, match=r"ended with exit code 1 after .*: no such luck$"):
        driven.loop.run()
    assert driven.loop.failures == 3
    assert not lease_file(db).exists()
    assert driven.address() is None


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        ({"argv": ["/no/such/program"]}, Unavailable, "exit code 127.*/no/such/program: no such file"),
        ({"ready_timeout": 0.2, "is_ready": lambda seconds: False}, Unavailable, "not ready after 0.2 s"),
        ({"is_ready": lambda seconds: broken("division by zero")}, BackendError, "division by zero"),
        ({"protocol": "x", "host": "a b"}, Exception, "can't be published"),
    ],
    ids=["no program", "never ready", "a fault of the plugin", "an impossible host"],
)
def test_bad_plans_end_the_first_start(drive, db, monkeypatch, plan, error, words):
    driven = drive()
    backend = driven.loop._backend
    start = backend.start_server
    changed = dict(plan)
    monkeypatch.setattr(backend, "start_server", lambda *words, tls: replaced(start(*words), changed))
    with pytest.raises(error, match=words):
        driven.loop.run()
    assert not lease_file(db).exists()


def broken(words):
    raise BackendError(words)


def replaced(plan, changes):
    return dataclasses.replace(plan, **changes)


def test_an_error_of_the_backend_ends_the_first_start(drive, db, monkeypatch):
    driven = drive()

    def refuse(*_, tls):
        raise BackendError("the program is not installed")

    monkeypatch.setattr(driven.loop._backend, "start_server", refuse)
    with pytest.raises(BackendError, match="not installed"):
        driven.loop.run()
    assert not lease_file(db).exists()


def test_a_host_that_is_not_ours_is_refused(drive, db):
    with pytest.raises(InvalidInput, match=r"192\.0\.2\.1.*--host"):
        drive(host="192.0.2.1").loop.run()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_wildcard_is_published_as_what_others_reach(drive, monkeypatch, host):
    monkeypatch.setattr(network, "advertised", lambda host: "login1.example.org")
    try:
        network.choose_port(host)
    except InvalidInput:
        pytest.skip(f"this machine can't listen on {host}")
    assert drive(host=host).until_published().host == "login1.example.org"


def test_output_is_logged_whole_and_lines_are_bounded(drive, db, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    driven = drive()
    backend = driven.loop._backend
    start = backend.start_server
    code = "print('x' * 5000 + '\\n' + 'second', end='', flush=True)"
    argv = ["python3", "-I", "-S", "-c", code]
    monkeypatch.setattr(backend, "start_server", lambda *words, tls: replaced(start(*words), {"argv": argv}))
    with pytest.raises(Unavailable, match="second"):
        driven.loop.run()
    lines = [record.args[1] for record in caplog.records if record.name.endswith("server_process")]
    assert lines[:2] == ["x" * 2000, "second"]


def test_the_server_gets_a_clean_start(drive, monkeypatch):
    driven = drive()
    backend = driven.loop._backend
    start = backend.start_server
    code = (
        "import os, signal, sys; os.umask(o := os.umask(0));"
        "print([signal.getsignal(n) == signal.SIG_DFL for n in (1, 2, 13, 15)][0::3], oct(o), os.getcwd(), "
        "os.environ['COLOUR'], os.getsid(0) == os.getpid(), sorted(os.listdir('/proc/self/fd'))[:-1], "
        "hex(int(open('/proc/self/status').read().split('SigIgn:')[1].split()[0], 16) & 0x7fffffff), "
        "sys.stdin.read() == '')"
    )
    changes = {"argv": ["python3", "-I", "-S", "-c", code], "env": {"COLOUR": "red"}}
    monkeypatch.setattr(backend, "start_server", lambda *words, tls: replaced(start(*words), changes))
    with pytest.raises(Unavailable) as caught:
        driven.loop.run()
    # Python itself ignores SIGPIPE (bit 12) and SIGXFSZ (bit 24); the real-time signals are left as they were.
    assert f"[True, True] 0o77 {driven.db.path} red True ['0', '1', '2'] 0x1001000 True" in str(caught.value)


def test_signals_stop_in_the_right_order(drive, db, monkeypatch):
    driven = drive()
    driven.until_published()
    lease = driven.held.lease
    seen = []
    withdraw = address.withdraw

    def watched(db):
        seen.append((is_alive(lease.child_pid, lease.child_start), lease_file(db).exists()))
        withdraw(db)

    monkeypatch.setattr(address, "withdraw", watched)
    os.kill(os.getpid(), signal.SIGTERM)
    assert driven.loop.run() is SupervisorOutcome.STOPPED
    # Clients may write to the files once the address is withdrawn: the server must have ended.
    assert seen == [(False, True)]
    assert driven.address() is None
    assert not lease_file(db).exists()
    assert not is_alive(lease.child_pid, lease.child_start)


def test_a_second_signal_ends_the_waiting(drive, db, monkeypatch):
    (db.path / "deaf").touch()
    driven = drive()
    driven.until_published()
    server = driven.loop.server
    server.plan = replaced(server.plan, {"stop": [(signal.SIGTERM, 600.0)]})
    asked = server.signal

    def ask(number):
        asked(number)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(server, "signal", ask)
    os.kill(os.getpid(), signal.SIGTERM)
    assert driven.loop.run() is SupervisorOutcome.STOPPED
    assert server.describe_end() == "was ended by SIGKILL"
