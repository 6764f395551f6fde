"""The lease: who is judged dead, and that of many takers one wins, whatever comes in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import msgspec
import pytest

from balsam_core.dbdir import lease as lease_module
from balsam_core.dbdir.lease import EXPIRY, HeldLease, LeaseObserver, LeaseState, LeaseStatus, lease_file, new_lease
from balsam_core.errors import Conflict, SchemaMismatch
from balsam_core.system.processes import start_of
from balsam_core.watchdog import takeover
from balsam_core.watchdog.stop_request import ask_to_stop, forget_stop, stop_asked
from balsam_core.watchdog.takeover import acquire, take

HOUR = 3600


def dead_pid():
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", ""]) as process:
        process.wait()
    return process.pid


def put(db, age=0.0, **members):
    """Write a lease file that somebody left, with a heartbeat of some age."""
    lease = msgspec.structs.replace(new_lease(), **members)
    lease_file(db).write_bytes(msgspec.json.encode(lease))
    moment = lease_file(db).stat().st_mtime - age
    os.utime(lease_file(db), (moment, moment))
    return lease


def state(db):
    return LeaseObserver(db).observe().state


def taken(db):
    return acquire(db, new_lease(), LeaseObserver(db))


def entries(db):
    return sorted(path.name for path in db.path.iterdir())


ELSEWHERE = [
    pytest.param({"node": "other"}, id="other host"),
    pytest.param({"boot_id": "before"}, id="reboot"),
    pytest.param({"pid_namespace": 7}, id="container"),
]


def test_no_lease_is_free(db):
    assert state(db) is LeaseState.FREE


def test_a_living_process_of_this_machine_holds_it_whatever_the_heartbeat(db):
    put(db, age=HOUR)
    assert state(db) is LeaseState.ALIVE
    put(db, age=-HOUR)
    assert state(db) is LeaseState.ALIVE


def test_a_dead_process_of_this_machine_is_dead_at_once(db):
    put(db, pid=dead_pid())
    assert state(db) is LeaseState.DEAD


def test_a_reused_process_id_is_dead(db):
    put(db, pid=os.getpid(), start=start_of(os.getpid()) - 1)
    assert state(db) is LeaseState.DEAD


@pytest.mark.parametrize("members", ELSEWHERE)
def test_elsewhere_only_the_heartbeat_counts(db, members):
    for pid in (os.getpid(), dead_pid()):
        put(db, pid=pid, **members)
        assert state(db) is LeaseState.UNSURE
        put(db, pid=pid, age=EXPIRY + 1, **members)
        assert state(db) is LeaseState.EXPIRED


def test_a_refresh_is_noticed(db):
    put(db, node="other", age=5)
    observer = LeaseObserver(db)
    assert observer.observe().state is LeaseState.UNSURE
    assert observer.observe().state is LeaseState.UNSURE
    os.utime(lease_file(db))
    assert observer.observe().state is LeaseState.ALIVE
    assert observer.observe().state is LeaseState.UNSURE


def test_another_lease_is_no_heartbeat(db):
    observer = LeaseObserver(db)
    for _ in range(2):
        put(db, node="other")
        assert observer.observe().state is LeaseState.UNSURE


@pytest.mark.parametrize("age", [-HOUR, 0])
def test_without_a_reliable_clock_observation_decides(db, monkeypatch, age):
    now = [100.0]
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(lease_module, "_seconds_since", lambda db, moment: None if age == 0 else age)
    put(db, node="other", age=age)
    observer = LeaseObserver(db)
    assert observer.observe().state is LeaseState.UNSURE
    now[0] += EXPIRY - 1
    assert observer.observe().state is LeaseState.UNSURE
    now[0] += 2
    assert observer.observe().state is LeaseState.EXPIRED


@pytest.mark.parametrize("content", [b"", b"garbage", b"{}", b"[" * 9999, b'{"token": 3}'])
def test_garbage_is_taken_when_nobody_refreshes_it(db, content):
    lease_file(db).write_bytes(content)
    assert state(db) is LeaseState.UNSURE
    moment = lease_file(db).stat().st_mtime - EXPIRY - 1
    os.utime(lease_file(db), (moment, moment))
    assert isinstance(taken(db), HeldLease)


def test_a_newer_format_is_refused(db):
    put(db, format=2)
    with pytest.raises(SchemaMismatch, match="upgrade"):
        state(db)


def test_what_is_no_file_is_refused(db):
    lease_file(db).symlink_to("nowhere")
    with pytest.raises(OSError, match="symbolic"):
        state(db)


def test_taking_leaves_one_private_file(db):
    held = taken(db)
    assert entries(db) == [".dbserver.lock", "dbserver.lease"]
    assert lease_file(db).stat().st_mode & 0o777 == 0o600
    assert json.loads(lease_file(db).read_bytes())["pid"] == os.getpid()
    held.release()
    assert entries(db) == [".dbserver.lock"]


def test_generation_is_called_epoch_in_the_file(db):
    held = taken(db)
    held.update(generation=3)
    assert json.loads(lease_file(db).read_bytes())["epoch"] == 3
    assert LeaseObserver(db).observe().lease.generation == 3


def test_dead_leases_are_replaced(db):
    for members in ({"pid": dead_pid()}, {"node": "other", "age": EXPIRY + 1}):
        put(db, **members)
        held = taken(db)
        assert held.is_ours()
        assert entries(db) == [".dbserver.lock", "dbserver.lease"]


def test_living_leases_are_not(db):
    for members in ({}, {"node": "other"}):
        mine = put(db, **members)
        assert isinstance(taken(db), LeaseStatus)
        assert json.loads(lease_file(db).read_bytes())["token"] == mine.token


def test_a_dead_machine_that_may_hold_the_data_needs_takeover(db):
    put(db, node="other", age=EXPIRY + 1, exclusive=True)
    with pytest.raises(Conflict, match=r"other.*--takeover"):
        taken(db)
    assert isinstance(acquire(db, new_lease(), LeaseObserver(db), takeover=True), HeldLease)


@pytest.mark.parametrize("members", [{"pid": 0}, {"boot_id": "before", "age": EXPIRY + 1}])
def test_a_dead_process_of_this_host_needs_none(db, members):
    put(db, exclusive=True, **members)
    assert isinstance(taken(db), HeldLease)


def test_holder_sees_that_it_was_replaced_and_touches_nothing(db):
    held = taken(db)
    assert held.refresh()
    assert held.update(generation=3)
    other = put(db, node="other")
    before = lease_file(db).stat().st_mtime_ns
    assert not held.is_ours()
    assert not held.refresh()
    assert not held.update(generation=4)
    held.release()
    assert lease_file(db).stat().st_mtime_ns == before
    assert json.loads(lease_file(db).read_bytes())["token"] == other.token
    lease_file(db).unlink()
    assert not held.refresh()
    assert not held.update(generation=4)
    assert entries(db) == [".dbserver.lock"]


def test_beating_and_changing_refresh_the_file(db):
    held = taken(db)
    for act in (held.refresh, lambda: held.update(child_pid=7)):
        os.utime(lease_file(db), (1, 1))
        assert act()
        assert lease_file(db).stat().st_mtime > 1
    assert LeaseObserver(db).observe().lease.child_pid == 7


# ---- races, driven at chosen points. Threads of one process are not kept apart by the lock, as where locks lie.


def test_a_rival_between_check_and_take_wins(db):
    put(db, pid=dead_pid())
    seen = LeaseObserver(db).observe()
    rival = taken(db)
    assert not take(db, new_lease(), seen)
    assert rival.is_ours()
    assert entries(db) == [".dbserver.lock", "dbserver.lease"]


def test_a_holder_that_wakes_up_keeps_its_lease(db):
    put(db, node="other", age=EXPIRY + 1)
    seen = LeaseObserver(db).observe()
    os.utime(lease_file(db))
    assert not take(db, new_lease(), seen)
    assert LeaseObserver(db).observe().lease.node == "other"


def test_a_rival_that_finds_the_gap_wins(db, monkeypatch):
    """The old lease is renamed aside, the new one not linked yet: another starter finds the place free."""
    put(db, pid=dead_pid())
    seen = LeaseObserver(db).observe()
    rename_new = takeover.rename_new
    rivals = []

    def slow(temporary, target):
        monkeypatch.setattr(takeover, "rename_new", rename_new)
        rivals.append(taken(db))
        return rename_new(temporary, target)

    monkeypatch.setattr(takeover, "rename_new", slow)
    assert not take(db, new_lease(), seen)
    assert rivals[0].is_ours()
    assert entries(db) == [".dbserver.lock", "dbserver.lease"]


def test_a_change_at_the_moment_of_a_takeover_is_not_undone(db, monkeypatch):
    held = taken(db)
    found = []

    def taken_over(self):
        answer = True
        if not found:
            found.append(put(db, node="other"))
            answer = False
        return answer

    monkeypatch.setattr(HeldLease, "is_ours", taken_over)
    assert not held.update(generation=9)
    assert json.loads(lease_file(db).read_bytes())["token"] == found[0].token


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
@pytest.mark.parametrize("before", ["free", "dead"])
def test_of_many_one_wins(db, monkeypatch, links, before):
    if not links:

        def refused(*_):
            raise PermissionError(1, "Operation not permitted")

        lock = threading.Lock()  # one of the two is needed: here the lock is honest
        monkeypatch.setattr(os, "link", refused)
        monkeypatch.setattr(takeover, "lease_lock", lambda db: lock)
    pid = dead_pid()
    for _ in range(20):
        if before == "dead":
            put(db, pid=pid)
        gate = threading.Barrier(8)
        held = []

        def contend(gate=gate, held=held):
            gate.wait()
            got = taken(db)
            if isinstance(got, HeldLease):
                held.append(got)

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        owners = [one for one in held if one.is_ours()]
        assert len(owners) == 1
        assert len(held) == 1 or links  # without a lock another may believe it, until its first look
        owners[0].release()
        assert entries(db) == [".dbserver.lock"]


def test_a_lost_answer_of_the_file_server_is_no_defeat(db, monkeypatch):
    link = os.link

    def answer_lost(*names):
        link(*names)
        raise FileExistsError

    monkeypatch.setattr(os, "link", answer_lost)
    assert isinstance(taken(db), HeldLease)


def test_leftovers_of_killed_takers_are_swept(db):
    for name in (".dbserver.lease.x.tmp", ".dbserver.lease.y.stale", ".dbwriter_address.1.z.tmp"):
        (db.path / name).write_text("")
        os.utime(db.path / name, (1, 1))
    (db.path / ".dbserver.lease.young.tmp").write_text("")
    taken(db)
    assert entries(db) == [".dbserver.lease.young.tmp", ".dbserver.lock", "dbserver.lease"]


# ---- requests to stop


def test_a_request_reaches_the_lease_that_it_names(db):
    mine, other = new_lease(), new_lease()
    assert stop_asked(db, mine) is None
    ask_to_stop(db, mine)
    assert f"pid {os.getpid()}" in stop_asked(db, mine)
    assert stop_asked(db, other) is None
    forget_stop(db)
    forget_stop(db)
    assert stop_asked(db, mine) is None


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 10000])
def test_a_garbage_request_asks_nobody(db, content):
    (db.path / "dbserver.stop").write_bytes(content)
    assert stop_asked(db, new_lease()) is None
