"""Connections that a transport keeps at hand."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from balsam_core.connections import Connections


@pytest.fixture
def engine(tmp_path):
    one_only = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 10}
    made = create_engine(f"sqlite:///{tmp_path}/x.db", connect_args={"check_same_thread": False}, **one_only)
    yield made
    made.dispose()


def test_the_last_one_is_taken_again(engine):
    connections = Connections(engine)
    first = connections.take()
    connections.give_back(first)
    assert connections.take() is first
    first.close()


def test_who_waits_for_the_pool_gets_what_is_given_back(engine):
    """Of an engine that has one connection, a kept one would be waited for in vain."""
    connections = Connections(engine)
    only = connections.take()
    got = []
    waiting = threading.Thread(target=lambda: got.append(connections.take()))
    waiting.start()
    while not connections._waiting:
        pass
    connections.give_back(only)
    waiting.join()
    assert got[0].connection.dbapi_connection is not None
    got[0].close()


def test_threads_share_one_connection(engine):
    connections = Connections(engine)
    failures = []

    def work():
        try:
            for _ in range(200):
                connections.give_back(connections.take())
        except Exception as err:  # noqa: BLE001
            failures.append(err)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    connections.close()
    assert engine.pool.checkedout() == 0


def test_none_is_kept_after_the_end(engine):
    connections = Connections(engine)
    kept = connections.take()
    connections.give_back(kept)
    assert engine.pool.checkedout() == 1
    connections.close()
    assert engine.pool.checkedout() == 0
    used = connections.take()
    connections.give_back(used)
    assert engine.pool.checkedout() == 0
