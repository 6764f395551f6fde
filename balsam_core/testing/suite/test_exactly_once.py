"""A write takes effect once however often it is sent, and whoever sends it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from balsam_core.errors import Conflict
from balsam_core.model import calls
from balsam_core.model.calls import RequestId, Resources
from balsam_core.model.codec import decode_result, encode_call
from balsam_core.model.job import Job
from balsam_core.schema import tables
from balsam_core.testing.tools import register
from balsam_core.transport.base import EncodedTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from balsam_core import Database
    from balsam_core.client.jobs import Jobs
    from balsam_core.testing.fixtures import SuiteDB

SENDERS, SENT = 4, 2


@pytest.fixture
def client() -> str:
    return os.urandom(16).hex()


def send(transport: EncodedTransport, call: calls.Call[Any], request_id: RequestId) -> Any:  # noqa: ANN401
    """Send a write under a request id of the test's choice, as a repetition after a lost answer does."""
    return decode_result(
        type(call), transport.perform(type(call), encode_call(call), request_id, time.monotonic() + 60)
    )


def test_a_repeated_write_takes_effect_once_and_gives_the_same_answer(
    encoded: EncodedTransport, jobs: Jobs, client: str
) -> None:
    request_id, call = RequestId(client, 1, 0), calls.AddJobs(jobs=[Job(command="x")])
    first = send(encoded, call, request_id)
    assert send(encoded, call, request_id) == first
    assert jobs.count() == 1
    send(encoded, call, RequestId(client, 2, 1))
    assert jobs.count() == 2


def test_a_repeated_claim_gives_the_same_jobs(encoded: EncodedTransport, db: Database, client: str) -> None:
    ids = db.jobs.add([Job(command="x", priority=i) for i in range(5)])
    request_id, call = RequestId(client, 7, 6), calls.ClaimJobs(launcher=register(db), limit=3, resources=Resources())
    first = [job.id for job in send(encoded, call, request_id).jobs]
    assert first == [ids[4], ids[3], ids[2]]
    assert [job.id for job in send(encoded, call, request_id).jobs] == first
    assert [job.id for job in send(encoded, call, RequestId(client, 8, 6)).jobs] == [ids[1], ids[0]]


def test_a_refused_write_leaves_no_trace(encoded: EncodedTransport, jobs: Jobs, client: str) -> None:
    with pytest.raises(Conflict):
        send(encoded, calls.RenewLease(launcher=10**9, lease_seconds=1), RequestId(client, 1, 0))
    send(encoded, calls.AddJobs(jobs=[Job(command="x")]), RequestId(client, 2, 1))
    assert jobs.count() == 1


@pytest.mark.usefixtures("encoded")
def test_one_write_sent_by_many_at_once_takes_effect_once(suite_db: SuiteDB, jobs: Jobs, client: str) -> None:
    together = threading.Barrier(SENDERS)
    call = calls.AddJobs(jobs=[Job(command="x")])

    def sender(db: Database, request_id: RequestId) -> Any:  # noqa: ANN401
        assert isinstance(db.transport, EncodedTransport)
        together.wait(60)
        return send(db.transport, call, request_id)

    with contextlib.ExitStack() as opened, ThreadPoolExecutor(SENDERS) as threads:
        dbs = [opened.enter_context(suite_db.open()) for _ in range(SENDERS)]
        for db in dbs:
            db.info()
        for number in range(1, SENT + 1):
            answer, *others = threads.map(sender, dbs, repeat(RequestId(client, number, number - 1)))
            assert others == [answer] * (SENDERS - 1)
            assert jobs.count() == number


@pytest.mark.once
def test_stored_answers_are_forgotten_once_acknowledged(
    db: Database, engine: Callable[[str], Engine], encoded: EncodedTransport
) -> None:
    for _ in range(200):
        db.jobs.add(Job(command="x"))
    mine = sa.select(sa.func.count()).where(tables.processed_requests.c.client_id == encoded._session.client)  # noqa: SLF001
    with engine("reader").connect() as conn:
        assert conn.execute(mine).scalar_one() < 100


@pytest.mark.once
def test_old_answers_and_abandoned_inserts_are_pruned(db: Database, engine: Callable[[str], Engine]) -> None:
    batch = db.run(calls.OpenStagedInsert())
    (job,) = db.jobs.add(Job(command="seen"))
    db.run(calls.AddJobs(jobs=[Job(command="x") for _ in range(3)], staged_insert=batch))
    long_ago = datetime.now(UTC) - timedelta(days=8)
    with engine("writer").begin() as conn:
        conn.execute(tables.processed_requests.update().values(processed_at=long_ago))
        conn.execute(tables.staged_inserts.update().values(updated_at=long_ago))
    while db.run(calls.Prune()):
        pass
    with engine("reader").connect() as conn:
        assert list(conn.execute(sa.select(tables.jobs.c.id)).scalars()) == [job]
        oldest = conn.execute(sa.select(sa.func.min(tables.processed_requests.c.processed_at))).scalar_one()
    assert oldest > long_ago + timedelta(days=1)
