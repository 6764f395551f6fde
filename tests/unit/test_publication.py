"""The published address as clients and a server follow it."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace as changed

import pytest
from msgspec.structs import replace

from balsam_core.dbdir import address
from balsam_core.dbdir.lease import LeaseObserver, new_lease
from balsam_core.dbdir.publication import ABANDONED_TIMEOUT, Publication
from balsam_core.errors import AddressError
from balsam_core.system.processes import start_of, this_machine
from balsam_core.watchdog.takeover import acquire


@pytest.fixture
def db(db):
    address.withdraw(db)
    return db


def running(db, **members):
    here = this_machine()
    values = {"node": here.node, "boot_id": here.boot_id, "pid_namespace": here.pid_namespace, "pid": os.getpid()}
    values |= {"start_time": start_of(os.getpid()), "generation": 1, "directory": db.path.stat().st_ino}
    return address.Address(state="running", host="127.0.0.1", port=7, protocol="balsam/1", **(values | members))


def test_each_publication_is_seen_at_the_next_look(db):
    publication = Publication(db)
    assert publication.current() is None
    for generation in (1, 2, 3):
        address.write(db, running(db, generation=generation))
        assert publication.current().generation == generation
        assert publication.current() is publication.current()
    address.withdraw(db)
    assert publication.current() is None
    assert address.last_generation(db) == 3


def test_a_server_knows_when_another_was_published(db):
    publication = Publication(db)
    address.write(db, running(db, pid=1, generation=4))
    assert not publication.is_replaced(4)  # its predecessor
    address.write(db, running(db, generation=5))
    assert not publication.is_replaced(4)  # itself
    address.write(db, running(db, pid=1, generation=6))
    assert publication.is_replaced(4)
    address.write(db, running(db, node="elsewhere", generation=6))
    assert publication.is_replaced(4)
    address.withdraw(db)
    assert not publication.is_replaced(4)


def test_a_copy_of_a_served_directory_is_not_served(db, tmp_path):
    address.write(db, running(db))
    shutil.copytree(db.path, tmp_path / "copy")
    copy = changed(db, path=tmp_path / "copy")
    assert address.read(db) is not None
    assert address.read(copy) is None
    # Elsewhere the numbers of files may be others.
    address.write(copy, replace(running(db), node="elsewhere", host="10.0.0.1"))
    assert address.read(copy) is not None


def test_a_process_is_proven_dead_only_where_it_can_be_looked_at(db):
    assert not address.is_gone(running(db))
    assert address.is_gone(running(db, start_time=1.0))
    for members in ({"node": "elsewhere"}, {"boot_id": "before"}, {"pid_namespace": 7}):
        assert not address.is_gone(running(db, start_time=1.0, **members))


DAMAGES = {
    "deleted": lambda file: file.unlink(),
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:99]),
    "garbage": lambda file: file.write_bytes(os.urandom(300)),
    "without a state": lambda file: file.write_bytes(b"{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_known_server_stays_published_while_the_file_is_damaged(db, damage):
    publication = Publication(db)
    address.write(db, running(db))
    known = publication.current()
    DAMAGES[damage](db.address_file)
    assert publication.current() == known
    publication.forget()
    assert publication.current() == known
    assert not publication.is_replaced(0)
    address.withdraw(db)
    assert publication.current() is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_never_means_that_no_server_runs(db, damage):
    address.write(db, running(db))
    DAMAGES[damage](db.address_file)
    publication = Publication(db)
    with pytest.raises(AddressError, match=f"balsam init {db.path}"):
        publication.await_current(time.monotonic())
    assert not publication.is_replaced(0)


def test_a_damaged_file_is_waited_for_as_long_as_a_watchdog_lives(db):
    db.address_file.unlink()
    began = time.monotonic()
    with pytest.raises(AddressError):
        Publication(db).await_current(began + 60)
    assert time.monotonic() - began < 30, "nobody lives who would write it"
    held = acquire(db, new_lease(), LeaseObserver(db))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(Publication(db).await_current, time.monotonic() + 60)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=2 * ABANDONED_TIMEOUT)
        address.write(db, running(db))
        assert waiting.result(timeout=30) is not None
    held.release()
