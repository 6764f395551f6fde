"""``balsam dbserver`` with real watchdogs and the server of a toy backend."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import msgspec
import psutil
import pytest
from balsam_program import BALSAM, child, here
from namespaces import two_hosts
from toy_backend import toys

from balsam_core.admin import initialise as initialise_module
from balsam_core.admin.initialise import initialise
from balsam_core.dbdir import address
from balsam_core.dbdir.directory import DBDir
from balsam_core.dbdir.lease import EXPIRY, HeldLease, LeaseObserver, lease_file, new_lease
from balsam_core.dbdir.publication import refuse_while_served
from balsam_core.errors import BackendError, Conflict, Corrupt, Unavailable
from balsam_core.system.processes import is_alive, send_signal, start_of
from balsam_core.testing.tools import wait_until
from balsam_core.watchdog import control, user_servers
from balsam_core.watchdog.options import ServerOptions
from balsam_core.watchdog.stop_request import ask_to_stop
from balsam_core.watchdog.takeover import acquire


@pytest.fixture
def toy(tmp_path, monkeypatch):
    with toys(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def db(toy):
    return toy()


@pytest.fixture
def stranger():
    """A process that is none of ours."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def balsam(*words, **settings):
    return here.good("dbserver", *words, **settings)


def answers(found):
    with socket.create_connection((found.host, found.port), timeout=60) as connection:
        return connection.recv(5) == b"ready"


def watchdog_of(lease):
    return lease.pid, lease.start


def server_of(lease):
    return lease.child_pid, lease.child_start


def send(process, number):
    pid, start = process
    assert send_signal(pid, start, number)


def kill(process):
    send(process, signal.SIGKILL)
    wait_until(lambda: not is_alive(*process))


def put(db, age=0.0, **members):
    """Leave a lease with a heartbeat of some age, and a publication that belongs to it."""
    lease = msgspec.structs.replace(new_lease(generation=1), **members)
    lease_file(db).write_bytes(msgspec.json.encode(lease))
    moment = lease_file(db).stat().st_mtime - age
    os.utime(lease_file(db), (moment, moment))
    published = address.Address(
        state="running", host="127.0.0.1", port=1, protocol="toy/1", node=lease.node, boot_id=lease.boot_id,
        pid=lease.child_pid or 2**22 + 1, start_time=1.0, generation=7,
    )  # fmt: skip
    address.write(db, published)
    return lease


def assert_clean(db):
    assert address.read(db) is None
    left = {path.name for path in db.path.iterdir()}
    assert left <= {".dbserver.lock", "balsam.toml", "data", "dbwriter_address", "keys", "log", "toy.db", "engines"}
    assert user_servers.running() == []


# ---- start, stop, status


def test_start_status_stop(toy, db):
    done = balsam("--path", db.path)
    found = address.read(db)
    lease = toy.lease(db)
    assert done.out == f"running at 127.0.0.1:{found.port}\n"
    assert answers(found)
    shown = balsam("--status", "--path", db.path, "-o", "json").json
    assert shown["since"].startswith("20")
    assert {name: shown[name] for name in ("state", "port", "pid", "watchdog_pid", "restarts", "generation")} == {
        "state": "running", "port": found.port, "pid": found.pid, "watchdog_pid": lease.pid, "restarts": 0,
        "generation": 1,
    }  # fmt: skip
    assert balsam("--stop", "--path", db.path).out == f"stopped the server of {db.path}\n"
    assert not is_alive(*watchdog_of(lease))
    assert not is_alive(*server_of(lease))
    assert_clean(db)
    assert balsam("--status", db=db.path).out == f"DB        {db.path}\nserver    none\n"


def test_all_is_idempotent(toy, db):
    assert balsam("--stop", db=db.path).out == f"no server of {db.path} runs\n"
    first = balsam("-o", "json", db=db.path).json
    second = balsam("-o", "json", db=db.path).json
    assert (first.pop("already"), second.pop("already")) == (False, True)
    assert first == second
    assert [balsam("--stop", "-o", "json", db=db.path).json["result"] for _ in range(2)] == ["stopped", "none"]
    for _ in range(2):
        assert balsam("--reset", "-o", "json", db=db.path).json == {"path": str(db.path), "result": "reset"}
    assert_clean(db)


def test_the_starter_leaves_a_daemon(toy, db):
    child.good("dbserver", "--db", db.path)
    lease = toy.lease(db)
    assert psutil.Process(lease.pid).ppid() != os.getpid()
    assert os.getsid(lease.pid) not in {os.getsid(0), lease.pid}
    assert os.getsid(lease.child_pid) == lease.child_pid
    assert os.readlink(f"/proc/{lease.pid}/cwd") == "/"  # noqa: PTH115
    assert os.readlink(f"/proc/{lease.pid}/fd/0") == "/dev/null"  # noqa: PTH115
    logs = [path for path in db.log.iterdir() if path.name.startswith("dbserver_")]
    assert [os.readlink(f"/proc/{lease.pid}/fd/{number}") for number in (1, 2)] == [str(logs[0])] * 2  # noqa: PTH115
    text = logs[0].read_text()
    assert f"pid={lease.pid} db={db.path}" in text
    assert f"generation=1: server pid={lease.child_pid} is ready" in text
    assert "listening on" in text
    balsam("--stop", "--db", db.path)


def test_publications_are_numbered_through_all_stops(toy, db):
    generations = []
    for _ in range(2):
        generations.append(control.start(db).address.generation)
        toy.lease(db)
        control.stop(db)
    assert generations == [1, 2]
    assert address.last_generation(db) == 2


def test_each_db_has_its_own_server(toy):
    one, two = toy("one"), toy("two")
    started = [control.start(db) for db in (one, two)]
    leases = [toy.lease(db) for db in (one, two)]
    assert control.stop(one) == "stopped"
    assert answers(started[1].address)
    assert is_alive(*watchdog_of(leases[1]))
    assert control.stop(two) == "stopped"


def test_a_fixed_port_and_other_options(toy, db):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is taken" in here.refused(
            "dbserver", "--host", "localhost", "--port", port, code=4, db=db.path
        )
    assert balsam("--host", "localhost", "--port", port, db=db.path).out == f"running at 127.0.0.1:{port}\n"
    toy.lease(db)
    other = str(port + 1 if port < 65535 else 1024)
    assert "stop it first" in here.refused("dbserver", "--port", other, code=4, db=db.path)
    balsam("--stop", db=db.path)


def test_a_tilde_that_the_shell_left_is_expanded(toy, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    db = toy("testdb")
    balsam("--path=~/testdb")
    toy.lease(db)
    assert balsam("--stop", "--path=~/testdb").out == f"stopped the server of {db.path}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stop", "--status"], "one of --stop"),
        (["--stop", "--port", "5"], "for starting"),
        (["--status", "--takeover"], "--takeover is for"),
        (["--path", "a", "--db", "b"], "different DB"),
        (["--port", "0"], "--port"),
    ],
)
def test_nonsense_is_refused(words, said):
    assert said in here.refused("dbserver", *words, code=2)


def test_a_host_that_is_no_text_is_one_line(toy, db):
    assert "no server can listen on" in here.refused("dbserver", "--host", "\udcff", code=5, db=db.path)


def test_a_backend_without_server_says_so(toy):
    db = toy("db", "toynone")
    assert "Toy has no server" in here.refused("dbserver", code=5, db=db.path)
    assert_clean(db)


def test_the_default_db_is_made_for_a_start_only(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert balsam("--stop").out == "no server runs\n"
    assert "does not exist" in here.refused("dbserver", "--status", code=8)
    assert not (tmp_path / "data").exists()


# ---- failing starts


def test_a_server_that_cannot_start_is_one_line_and_leaves_nothing(toy, db):
    (db.path / "fail").write_text("Traceback\nOSError: no such luck")
    said = child.refused("dbserver", code=6, db=db.path)
    assert said.startswith(f"the server of {db.path} ended with exit code 1 after")
    assert said.endswith(f": OSError: no such luck; its log is in {db.log}")
    (db.path / "fail").unlink()
    assert_clean(db)


def test_a_watchdog_that_cannot_begin_is_one_line(toy, db, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    assert "could not start" in here.refused("dbserver", code=6, db=db.path)


def test_an_unwritable_log_is_one_line(toy, db):
    db.log.rmdir()
    db.log.write_text("")
    assert "log" in here.refused("dbserver", code=1, db=db.path)
    assert not lease_file(db).exists()


# ---- servers that are given up


def give_up(toy, db, text="Error: no such function"):
    """Start the server, break it, and wait until it is given up."""
    control.start(db)
    lease = toy.lease(db)
    (db.path / "fail").write_text(text)
    (db.path / "code").write_text("12")
    kill(server_of(lease))
    wait_until(lambda: toy.lease(db) is None and control.describe(db).state == "failed")
    return lease


def test_a_server_that_is_given_up_is_told_to_everybody(toy, db):
    lease = give_up(toy, db)
    wait_until(lambda: not is_alive(*watchdog_of(lease)))
    said = (
        r"was given up: it failed [0-9]+ times .* exit code 12 after .*: no such function; see .*/log/dbserver_.*\.log"
    )
    shown = balsam("--status", "-o", "json", db=db.path).json
    assert (shown["state"], shown["port"], shown["watchdog_pid"]) == ("failed", None, None)
    assert re.search(said, shown["failure"])
    assert re.search("server    failed: .*" + said, balsam("--status", db=db.path).out)
    status = child("status", db=db.path)
    assert status.code == 12
    assert re.search(said, status.out)
    with pytest.raises(BackendError, match=said):
        refuse_while_served(db)


def test_a_new_start_is_another_chance(toy, db):
    give_up(toy, db)
    assert "no such function" in child.refused("dbserver", code=12, db=db.path)
    assert control.describe(db).state == "failed", "nobody may use it past its server"
    (db.path / "fail").write_text("Error: another reason")
    assert "another reason" in child.refused("dbserver", code=12, db=db.path)
    assert "another reason" in control.describe(db).fault
    (db.path / "fail").unlink()
    assert answers(control.start(db).address)
    toy.lease(db)
    assert control.describe(db).state == "running"
    assert control.stop(db) == "stopped"


def test_who_waits_for_a_start_is_told_of_its_failure(toy, db):
    control.start(db)
    lease = toy.lease(db)
    (db.path / "fail").write_text("Error: no such function")
    (db.path / "code").write_text("12")
    kill(server_of(lease))
    with pytest.raises(BackendError, match=r"was given up: .*no such function"):
        control.start(db)


def test_stop_withdraws_a_server_that_was_given_up(toy, db):
    give_up(toy, db)
    assert "had died" in balsam("--stop", db=db.path).out
    assert control.describe(db).state == "stopped"
    for name in ("fail", "code"):
        (db.path / name).unlink()
    assert_clean(db)


def test_init_mends_a_db_whose_server_was_given_up(toy, db, monkeypatch):
    toy.make_tables(db)
    give_up(toy, db)

    def fail(*_, published):
        raise BackendError("no")

    with monkeypatch.context() as patch:
        patch.setattr(initialise_module, "_upgrade_tables", fail)
        with pytest.raises(BackendError, match="no"):
            initialise(db.path)
    assert control.describe(db).state == "failed"
    initialise(db.path)
    assert control.describe(db).state == "stopped"


def test_what_the_server_died_of_is_told_while_it_is_tried_again(toy, db):
    control.start(db)
    lease = toy.lease(db)
    (db.path / "fail").write_text("no idea")
    kill(server_of(lease))
    wait_until(lambda: toy.lease(db).restarts >= 3)
    said = (
        "starting, not ready yet; it was started again (once|[0-9]+ times); last: it ended with exit code 1 .*: no idea"
    )
    wait_until(lambda: re.search(said, balsam("--status", db=db.path).out))
    status = child("status", db=db.path)
    assert status.code == 6
    assert re.search(said, status.out)


# ---- kills


def test_options_that_the_running_server_does_not_have_are_an_error(toy, db):
    port = control.start(db).address.port
    toy.lease(db)
    for words in (["--host", "0.0.0.0"], ["--host", "no.such.host.invalid"], ["--port", "9"]):
        line = here.refused("dbserver", *words, code=4, db=db.path)
        assert f"runs already at 127.0.0.1:{port}, started with other options" in line
    for words in ([], ["--host", "localhost"], ["--host", "127.0.0.1", "--port", str(port)], ["--port", str(port)]):
        assert f"already running at 127.0.0.1:{port}" in here.good("dbserver", *words, db=db.path).out
    for host in ("", " "):
        assert "--host is empty" in here.refused("dbserver", "--host", host, code=2, db=db.path)


def test_a_killed_server_comes_back(toy, db):
    first = control.start(db).address
    lease = toy.lease(db)
    send(server_of(lease), signal.SIGKILL)
    second = wait_until(lambda: (found := address.read(db)).generation > first.generation and found)
    toy.lease(db)
    assert answers(second)
    assert balsam("--status", "-o", "json", db=db.path).json["restarts"] == 1
    assert control.stop(db) == "stopped"


def test_a_server_dies_with_its_watchdog_and_the_next_start_works(toy, db):
    control.start(db)
    lease = toy.lease(db)
    kill(watchdog_of(lease))
    wait_until(lambda: not is_alive(*server_of(lease)), seconds=10)
    assert balsam("--status", "-o", "json", db=db.path).json["state"] == "stale"
    done = here("status", db=db.path)
    assert done.code == 6
    assert "dead: 127.0.0.1" in done.out
    started = control.start(db)
    toy.lease(db)
    assert not started.already
    assert answers(started.address)
    control.stop(db)
    assert_clean(db)


@pytest.mark.parametrize("act", ["start", "stop", "reset"])
def test_both_killed(toy, db, act):
    control.start(db)
    lease = toy.lease(db)
    # The watchdog must not see the server's end.
    send(watchdog_of(lease), signal.SIGSTOP)
    kill(server_of(lease))
    kill(watchdog_of(lease))
    if act == "start":
        assert not control.start(db).already
        toy.lease(db)
        assert control.stop(db) == "stopped"
    elif act == "stop":
        assert balsam("--stop", db=db.path).out == f"the server of {db.path} had died; what it left is removed\n"
    else:
        balsam("--reset", db=db.path)
    assert_clean(db)


@pytest.mark.parametrize("act", ["start", "stop"])
def test_an_orphan_that_hangs_is_ended_before_anything_else(toy, db, act):
    (db.path / "deaf").touch()  # to the signal that the watchdog's death sends
    control.start(db)
    lease = toy.lease(db)
    kill(watchdog_of(lease))
    assert is_alive(*server_of(lease))
    assert "use balsam dbserver --stop" in here.refused("dbserver", "--reset", code=4, db=db.path)
    lease_file(db).write_bytes(msgspec.json.encode(msgspec.structs.replace(lease, stop=[(15, 0.1)])))
    if act == "start":
        started = control.start(db)
        toy.lease(db)
        assert answers(started.address)
        assert not is_alive(*server_of(lease))
    assert control.stop(db) == ("stopped" if act == "start" else "cleaned")
    assert not is_alive(*server_of(lease))


def test_a_watchdog_that_is_killed_while_stopping_is_cleaned_up(toy, db):
    control.start(db)
    lease = toy.lease(db)
    send(watchdog_of(lease), signal.SIGSTOP)
    done = []
    stopping = threading.Thread(target=lambda: done.append(control.stop(db)))
    stopping.start()
    wait_until((db.path / "dbserver.stop").exists)
    assert balsam("--status", "-o", "json", db=db.path).json["state"] == "stopping"
    kill(watchdog_of(lease))
    stopping.join()
    assert done == ["stopped"]
    assert not is_alive(*server_of(lease))
    assert_clean(db)


# ---- what dead or foreign servers left


def test_a_reused_process_id_is_never_signalled(toy, db, stranger):
    other = start_of(stranger.pid) - 5
    for act in (control.stop, control.reset, control.start):
        put(db, pid=stranger.pid, start=other, child_pid=stranger.pid, child_start=other)
        act(db)
    toy.lease(db)
    assert control.stop(db) == "stopped"
    assert stranger.poll() is None


@pytest.mark.parametrize("members", [{"boot_id": "before"}, {"node": "other"}, {"pid_namespace": 7}])
def test_a_lease_from_elsewhere_is_taken_over_once_it_is_silent(toy, db, stranger, members):
    put(db, age=EXPIRY + 1, child_pid=stranger.pid, child_start=start_of(stranger.pid), **members)
    started = control.start(db)
    toy.lease(db)
    assert not started.already
    assert started.address.generation == 8
    assert control.stop(db) == "stopped"
    assert stranger.poll() is None  # the number means another process there


def test_a_server_elsewhere_is_found_once_a_refresh_was_observed(toy, db):
    lease = put(db, node="other", generation=7)
    done = []
    starting = threading.Thread(target=lambda: done.append(control.start(db)))
    starting.start()
    while starting.is_alive():
        os.utime(lease_file(db))
        starting.join(0.1)
    assert done == [control.Started(address=address.read(db), already=True)]
    with pytest.raises(Conflict, match="on other lives"):
        refreshing(db, lambda: control.reset(db))
    assert balsam("--status", "-o", "json", db=db.path).json["node"] == lease.node


def refreshing(db, act):
    finished = threading.Event()

    def refresh():
        while not finished.wait(0.1):
            os.utime(lease_file(db))

    thread = threading.Thread(target=refresh)
    thread.start()
    try:
        act()
    finally:
        finished.set()
        thread.join()


def test_data_that_two_servers_would_destroy_need_takeover(toy):
    db = toy("db", "toyrequired")
    put(db, age=EXPIRY + 1, node="other", exclusive=True)
    for words in ([], ["--stop"]):
        assert "--takeover" in here.refused("dbserver", *words, code=4, db=db.path)
    balsam("--takeover", db=db.path)
    assert toy.lease(db).exclusive
    assert control.stop(db) == "stopped"


def test_a_garbage_address_does_not_prevent_a_start(toy, db):
    db.address_file.write_text("garbage")
    shown = balsam("--status", db=db.path).out
    assert "unknown: " in shown
    assert f"balsam init {db.path}" in shown
    assert answers(control.start(db).address)
    toy.lease(db)
    control.stop(db)
    db.address_file.write_text("garbage")
    balsam("--reset", db=db.path)
    assert_clean(db)


def test_a_stop_for_another_lease_is_ignored(toy, db):
    control.start(db)
    lease = toy.lease(db)
    ask_to_stop(db, new_lease())
    assert balsam("--status", "-o", "json", db=db.path).json["state"] == "running"
    assert control.stop(db) == "stopped"
    assert not is_alive(*watchdog_of(lease))
    assert_clean(db)


def test_stop_works_from_another_host_and_touches_no_process_here(toy, db, tmp_path):
    with two_hosts(tmp_path) as (alpha, beta):
        dbserver_there = [*BALSAM, "dbserver", "--path", str(db.path)]
        shown = json.loads(alpha.good([*dbserver_there, "--host", "0.0.0.0", "-o", "json"]))
        assert shown["host"] == alpha.address
        state = json.loads(beta.good([*dbserver_there, "--status", "-o", "json"]))
        assert (state["state"], state["node"], state["heartbeat_age"] < EXPIRY) == ("running", "alpha", True)
        again = beta.good(dbserver_there)
        assert again.startswith("already running at")
        assert beta.good([*dbserver_there, "--stop"]) == f"stopped the server of {db.path}\n"
        assert_clean(db)


# ---- many at once


@pytest.mark.parametrize("round_number", range(3))
def test_of_twenty_one_starts_and_the_others_report_its_address(toy, db, round_number):
    starters = [
        subprocess.Popen([*BALSAM, "dbserver", "-o", "json", "--path", db.path], stdout=subprocess.PIPE)
        for _ in range(20)
    ]
    outputs = [starter.communicate()[0] for starter in starters]
    toy.lease(db)
    assert [starter.returncode for starter in starters] == [0] * 20
    shown = [json.loads(output) for output in outputs]
    assert sorted(one.pop("already") for one in shown) == [False, *[True] * 19]
    assert all(one == shown[0] for one in shown)
    assert shown[0]["generation"] == 1
    assert control.stop(db) == "stopped"
    assert_clean(db)


def test_starts_and_stops_at_once_leave_no_process(toy, db):
    results = []

    def act(what):
        try:
            results.append(what(db))
        except Unavailable as err:  # its start was countermanded
            results.append(str(err))
        with contextlib.suppress(OSError):
            toy.lease(db)

    threads = [threading.Thread(target=act, args=(what,)) for what in [control.start, control.stop] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all("stopped before it was ready" in one for one in results if isinstance(one, str) and " " in one)
    control.stop(db)
    assert_clean(db)


# ---- a bare --stop


def test_a_bare_stop_stops_the_only_server(toy):
    used, served = toy("used"), toy("served")
    control.start(served)
    toy.lease(served)
    assert balsam("--stop", db=used.path).out == f"stopped the server of {served.path}\n"


def test_a_bare_stop_prefers_the_db_in_use(toy):
    used, other = toy("used"), toy("other")
    for db in (used, other):
        control.start(db)
        toy.lease(db)
    assert balsam("--stop", db=used.path).out == f"stopped the server of {used.path}\n"
    assert [db.path for db in user_servers.running()] == [other.path]
    assert balsam("--stop", db=used.path).out == f"stopped the server of {other.path}\n"
    assert balsam("--stop", db=used.path).out == f"no server of {used.path} runs\n"


def test_a_bare_stop_does_not_guess(toy):
    used, one, two = toy("used"), toy("one"), toy("two\n")
    for db in (one, two):
        control.start(db)
        toy.lease(db)
    said = here.refused("dbserver", "--stop", code=4, db=used.path)
    assert str(one.path) in said
    assert "two\\n" in said
    assert balsam("--stop", "--path", used.path).out == f"no server of {used.path} runs\n"
    for db in (one, two):
        control.stop(db)


def test_servers_that_are_gone_are_forgotten(toy, tmp_path):
    gone, moved = toy("gone"), toy("moved")
    for db in (gone, moved):
        user_servers.add(db)
    moved.path.rename(tmp_path / "elsewhere")
    assert user_servers.running() == []
    assert list((tmp_path / "state/balsam/servers").iterdir()) == []


# ---- in the foreground


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_foreground(toy, db, tmp_path, number):
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
        subprocess.Popen(
            [*BALSAM, "dbserver", "--foreground", "--path", db.path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            start_new_session=True,
        ) as process,
    ):
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(60)
        line = process.stdout.readline()
        found = address.read(db)
        assert line == f"running at 127.0.0.1:{found.port}\n"
        assert toy.lease(db).pid == process.pid
        assert notified.recv(100) == b"READY=1"
        assert "has a server already" in here.refused("dbserver", "--foreground", code=4, db=db.path)
        os.killpg(process.pid, number)  # as Ctrl-C does: to the whole group
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert notified.recv(100) == b"STOPPING=1"
    assert f"stopping: asked by {number.name}" in err
    assert_clean(db)


def test_foreground_is_stopped_like_any_other(toy, db):
    with subprocess.Popen(
        [*BALSAM, "dbserver", "--foreground", "--path", db.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        toy.lease(db)
        assert control.stop(db) == "stopped"
        process.communicate()
        assert process.returncode == 0
    assert_clean(db)


# ---- init on a served DB


def test_init_stops_the_server_and_starts_it_again_as_it_was(toy, db):
    toy.make_tables(db)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first = control.start(db, ServerOptions(host="localhost", port=port)).address
    toy.lease(db)
    done = here.good("init", db.path)
    second = address.read(db)
    lease = toy.lease(db)
    assert f"its server was stopped meanwhile and runs again at localhost:{port}" in done.out
    assert (second.host, second.port, second.generation) == ("localhost", port, first.generation + 1)
    assert (lease.listen, lease.port) == ("localhost", port)
    assert answers(second)
    assert (db.path / "engines").read_text() == "owner False\n"
    control.stop(db)
    assert_clean(db)


def test_init_keeps_a_port_that_was_free_to_choose(toy, db):
    toy.make_tables(db)
    first = control.start(db).address
    toy.lease(db)
    assert initialise(db.path).restarted.port == first.port
    assert toy.lease(db).port == 0
    control.stop(db)


def test_nobody_starts_a_server_during_init(toy, db, monkeypatch):
    control.start(db)
    toy.lease(db)
    found = []

    def meanwhile(backend, db, published=None):
        found.append((address.read(db), acquire(db, new_lease(), LeaseObserver(db))))

    monkeypatch.setattr(initialise_module, "_upgrade_tables", meanwhile)
    assert initialise(db.path).restarted
    toy.lease(db)
    assert found[0][0] is None
    assert not isinstance(found[0][1], HeldLease)
    control.stop(db)


def test_a_failed_init_serves_again_what_was_served(toy, db, monkeypatch):
    control.start(db)
    toy.lease(db)

    def fail(*_, published):
        raise Conflict("no")

    monkeypatch.setattr(initialise_module, "_upgrade_tables", fail)
    with pytest.raises(Conflict, match="no"):
        initialise(db.path)
    toy.lease(db)
    assert answers(address.read(db))
    control.stop(db)


def test_a_killed_init_leaves_a_stopped_server(toy, db, monkeypatch):
    control.start(db)
    toy.lease(db)

    def killed(*_, published):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(initialise_module, "_upgrade_tables", killed)
    process = os.fork()
    if not process:
        with contextlib.suppress(BaseException):
            initialise(db.path)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    assert address.read(db) is None
    assert control.describe(db).state == "stopped"
    with toys_again(toy):
        assert not control.start(db).already
        toy.lease(db)
        control.stop(db)


@contextlib.contextmanager
def toys_again(toy):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(toy._folder / "site"))
        patch.setenv("XDG_STATE_HOME", str(toy._folder / "state"))
        yield


def test_a_db_that_needs_its_server_is_refreshed_through_it(toy):
    db = toy("db", "toyrequired")
    toy.make_tables(db)
    first = control.start(db).address
    toy.lease(db)
    assert initialise(db.path).restarted is None
    assert address.read(db) == first
    assert (db.path / "engines").read_text() == "owner True\n" * 2
    control.stop(db)


def test_a_db_that_needs_its_server_is_made_and_refreshed_by_a_private_one(toy, tmp_path):
    path = tmp_path / "made"
    db = initialise(path, "toyrequired").db
    assert initialise(path).restarted is None
    assert (path / "engines").read_text() == "owner True\n" * 2
    assert address.read(db) is None
    assert_clean(db)


def test_a_change_of_a_db_that_needs_its_server_stops_it_and_starts_it_again(toy):
    db = toy("db", "toyrequired")
    toy.make_tables(db)
    first = control.start(db).address
    toy.lease(db)
    (db.path / "toy.db").rename(db.path / "moved")  # the tables are missing: a change is due
    with pytest.raises(Corrupt, match="none of this DB's tables"):
        initialise(db.path)
    toy.lease(db)
    assert address.read(db).generation == first.generation + 1
    (db.path / "moved").rename(db.path / "toy.db")
    assert initialise(db.path).restarted is None
    control.stop(db)


def test_a_private_server_that_does_not_start_is_an_error_of_init(toy, monkeypatch):
    monkeypatch.setattr("balsam_core.watchdog.temporary.ATTEMPTS", 1)
    db = toy("db", "toyrequired")
    (db.path / "fail").write_text("no licence")
    with pytest.raises(Unavailable, match="no licence"):
        initialise(db.path)
    (db.path / "fail").unlink()
    assert_clean(db)


def test_init_removes_a_dead_publication(toy, db):
    toy.make_tables(db)
    address.write(db, address.Address(state="running", host="h", port=1, pid=1, generation=3))
    assert initialise(db.path).restarted is None
    assert address.read(db) is None
    assert address.last_generation(db) == 3
    assert DBDir.open(db.path) == db


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can serve another user's DB")
def test_what_root_writes_into_another_user_s_db_is_that_user_s(toy, db):
    for path in (db.path, *db.path.rglob("*")):
        os.chown(path, 65534, 65534)
    control.start(db)
    toy.lease(db)
    shared = [path for path in db.path.iterdir() if path.is_file()]
    assert {".dbserver.lock", "dbserver.lease", "dbwriter_address"} <= {path.name for path in shared}
    assert {path.stat().st_uid for path in (*shared, *db.log.iterdir())} == {65534}
    control.stop(db)
