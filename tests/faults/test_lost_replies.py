"""Answers that never arrive: the call is sent again, and its first answer is given again."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, TypeVar

import msgspec
import pytest
from amounts import at_most
from exact import exact_report, writers
from tcp_faults import FaultyLink

from balsam_core import Job, open_db
from balsam_core.backends import registry
from balsam_core.dbdir import address
from balsam_core.model.calls import AddJobs, Call, ClaimJobs, GetInfo, KillJobs, RegisterLauncher, Resources
from balsam_core.model.codec import decode_result, encode_call
from balsam_core.model.filters import Compare
from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
    from balsam_core.transport.base import EncodedTransport

R = TypeVar("R")


@pytest.fixture
def link(served):
    """A link that all clients take to the server."""
    with FaultyLink((served.address.host, served.address.port)) as link:
        address.write(served.dir, msgspec.structs.replace(served.address, port=link.port))
        yield link


def names(served):
    """Return the names of all jobs."""
    with open_db(served.path) as db:
        return sorted(row[0] for row in db.jobs.rows("name"))


def lose_the_answer(transport: EncodedTransport, link: FaultyLink, call: Call[R]) -> R:
    """Run a call whose first answer is lost, and ask twice more; returns the answer, the same each time."""
    kind, data = type(call), encode_call(call)
    with transport._session.new_request_id() as request_id:
        transport.run(GetInfo())  # a connection that is greeted: what is lost is the answer
        lost = link.to_clients.swallowed
        link.swallow_replies(1)
        answers, lengths = set(), set()
        for _ in range(3):
            answers.add(transport.perform(kind, data, request_id, time.monotonic() + 30))
            lengths.add(len(link.to_clients.seen[-1]))  # encrypted
        assert link.to_clients.swallowed == lost + 1
    assert (len(answers), len(lengths)) == (1, 1)
    return decode_result(kind, answers.pop())


def test_lost_replies_are_given_again_byte_for_byte(served, link, amount, verdict):
    """Answers to writes are lost, and the writes sent again: the same bytes come back (T03)."""
    rounds = amount(1, 8)
    with registry.load("sqlite").open_transport(served.dir) as transport:
        registration = RegisterLauncher(host="h", pid=1, boot_id="b", process_start=0.0, lease_seconds=900)
        launcher = transport.run(registration)
        for number in range(rounds):
            adds = AddJobs(jobs=[Job(name=f"j{number}-{n}", command="true") for n in range(3)])
            claims = ClaimJobs(launcher=launcher, limit=2, resources=Resources())
            kills = KillJobs(where=Compare("name", "eq", f"j{number}-2"))
            added = lose_the_answer(transport, link, adds)
            claimed = lose_the_answer(transport, link, claims)
            killed = lose_the_answer(transport, link, kills)
            assert len(claimed.jobs) == 2
            assert killed.ids == [added.first_id + 2]
        assert names(served) == sorted(f"j{number}-{n}" for number in range(rounds) for n in range(3))
    verdict("T03", "lost reply, sent again", f"{3 * rounds} lost, {9 * rounds} replayed: all bytes equal")


def lose(link, count):
    """Lose so many of the server's messages; the first one is lost when this returns."""
    before = link.to_clients.swallowed
    link.swallow_replies(count)
    wait_until(lambda: link.to_clients.swallowed > before, "lost replies")


def test_many_lost_replies(served, link, tmp_path, amount, verdict):
    """Answers are lost at random under writers: no write is lost or doubled (T03)."""
    rounds, number = amount((3, 4), (60, 16))
    chance = random.Random(3)
    with writers(served.path, number, tmp_path, pause=0.002) as clients:
        clients.begin()
        for _ in range(rounds):
            clients.wait_for_more(chance.randint(2, 10) * number)
            lose(link, chance.randint(1, number // 4))
        link.heal()  # of what is not lost yet
        clients.stop()
        clients.finish()
        journals = clients.journals
    lost = link.to_clients.swallowed
    report = exact_report(served, journals)
    assert report.longest_stall < at_most(5)
    verdict("T03", f"lost replies under {number} writers", f"{lost} lost: {report}")
