"""Deadlines where a driver would wait for ever."""

from __future__ import annotations

import socket
import time

import pytest

from balsam_core.transport.deadlines import DeadlineEnforcer, bounded, seconds_left


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def cutter():
    made = DeadlineEnforcer()
    yield made
    made.close()


def test_without_a_call_there_is_as_much_time_as_asked_for():
    assert seconds_left(7.0) == 7.0


def test_a_call_has_the_time_until_its_deadline():
    now = time.monotonic()
    with bounded(now + 3):
        assert 2 < seconds_left(10.0) <= 3
        assert seconds_left(1.0) == 1.0
        with bounded(now - 1):
            assert seconds_left(10.0) == 0.0
        assert seconds_left(10.0) > 2
    assert seconds_left(10.0) == 10.0


def test_whoever_waits_beyond_the_deadline_finds_the_connection_ended(pair, cutter):
    ours, theirs = pair
    began = time.monotonic()
    with cutter.watching(ours, began + 0.2):
        assert ours.recv(1) == b""
    assert time.monotonic() - began < 3
    assert theirs.recv(1) == b""


def test_a_call_in_time_keeps_its_connection(pair, cutter):
    ours, theirs = pair
    for _ in range(3):
        with cutter.watching(ours, time.monotonic() + 0.1):
            theirs.send(b"x")
            assert ours.recv(1) == b"x"
    time.sleep(1.0)  # beyond all of these deadlines
    theirs.send(b"y")
    assert ours.recv(1) == b"y"


def test_several_are_cut_each_at_its_own_time(cutter):
    (early, one), (late, two) = socket.socketpair(), socket.socketpair()
    with early, one, late, two:
        now = time.monotonic()
        with cutter.watching(late, now + 60), cutter.watching(early, now):
            assert early.recv(1) == b""
            two.send(b"x")
            assert late.recv(1) == b"x"


def test_what_has_no_descriptor_is_let_alone(cutter):
    with cutter.watching(object(), 0.0):
        pass
