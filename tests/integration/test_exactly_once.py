"""What NativeTransport owes: a write takes effect once however often it is sent, and many processes share one DB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from native import make_transport

from balsam_core import Job
from balsam_core.errors import Conflict
from balsam_core.jobs import Jobs
from balsam_core.model import calls
from balsam_core.model.calls import Resources, Ticket
from balsam_core.schema import tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.transport import NativeTransport

SUPPORT = Path(__file__).parents[1] / "support"
WRITERS, WRITES = 8, 25


@pytest.fixture
def transport(engine_url: str) -> Iterator[NativeTransport]:
    with make_transport(engine_url) as made:
        yield made


def send(transport: NativeTransport, call: calls.Call[Any], ticket: Ticket) -> Any:
    """Send a write under a ticket of the test's choice, as a repetition after a lost answer does."""
    from balsam_core.model.codec import decode_result

    return decode_result(type(call), transport._write(call, ticket))


def test_a_repeated_write_takes_effect_once_and_gives_the_same_answer(transport: NativeTransport) -> None:
    ticket = Ticket("c" * 32, 1, 0)
    call = calls.AddJobs(jobs=[Job(command="x")])
    first = send(transport, call, ticket)
    assert send(transport, call, ticket) == first
    assert Jobs(transport).count() == 1
    send(transport, call, Ticket("c" * 32, 2, 1))
    assert Jobs(transport).count() == 2


def test_a_repeated_claim_gives_the_same_jobs(transport: NativeTransport) -> None:
    Jobs(transport).add([Job(command="x", priority=i) for i in range(5)])
    me = transport.run(calls.RegisterLauncher(host="h", pid=1, boot_id="b", process_start=0.0, lease_seconds=900))
    ticket = Ticket("d" * 32, 7, 6)
    call = calls.ClaimJobs(launcher=me, limit=3, resources=Resources())
    first = [job.id for job in send(transport, call, ticket).jobs]
    assert first == [5, 4, 3]
    assert [job.id for job in send(transport, call, ticket).jobs] == first
    assert [job.id for job in send(transport, call, Ticket("d" * 32, 8, 6)).jobs] == [2, 1]


def test_a_refused_write_leaves_no_trace_and_may_be_sent_again(transport: NativeTransport) -> None:
    ticket = Ticket("e" * 32, 1, 0)
    with pytest.raises(Conflict):
        send(transport, calls.RenewLease(launcher=77, lease_seconds=1), ticket)
    send(transport, calls.AddJobs(jobs=[Job(command="x")]), ticket)
    assert Jobs(transport).count() == 1


def test_stored_answers_are_forgotten_once_acknowledged(transport: NativeTransport) -> None:
    jobs = Jobs(transport)
    for _ in range(200):
        jobs.add(Job(command="x"))
    with transport.engine.connect() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(tables.applied)).scalar() < 100


WRITER = f"""
import sys
sys.path.insert(0, {str(SUPPORT)!r})
from balsam_core import Job
from balsam_core.jobs import Jobs
from balsam_core.transport import NativeTransport
from native import is_retryable, make_engine

url, writer, writes = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.stdin.readline()
with NativeTransport(make_engine(url), is_retryable=is_retryable) as transport:
    jobs = Jobs(transport)
    for number in range(writes):
        key = f"shared-{{number}}" if number % 5 == 0 else None
        jobs.add(Job(command="x", workflow=f"flow{{number % 3}}", name=f"{{writer}}-{{number}}", key=key))
"""

CLAIMER = f"""
import sys
sys.path.insert(0, {str(SUPPORT)!r})
from balsam_core.model import calls
from balsam_core.model.calls import Resources, Update
from balsam_core.model.states import State as S
from balsam_core.transport import NativeTransport
from native import is_retryable, make_engine

done = [(s, 0.0) for s in (S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED)]
with NativeTransport(make_engine(sys.argv[1]), is_retryable=is_retryable) as transport:
    me = transport.run(calls.RegisterLauncher(host="h", pid=1, boot_id="b", process_start=0.0, lease_seconds=900))
    sys.stdin.readline()
    empty = 0
    while empty < 3:
        taken = transport.run(calls.ClaimJobs(launcher=me, limit=5, resources=Resources())).jobs
        empty = 0 if taken else empty + 1
        print(*(job.id for job in taken), flush=True)
        updates = [Update(job=job.id, attempt=job.attempt, hops=done) for job in taken]
        assert transport.run(calls.UpdateJobs(launcher=me, updates=updates)) == {{}}
"""


def run_together(code: str, arguments: list[list[str]]) -> list[str]:
    """Run processes side by side and return their output; they begin together."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *some],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for some in arguments
    ]
    try:
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [(process.returncode, err) for process, (_, err) in zip(processes, results, strict=True)] == [
        (0, "") for _ in processes
    ]
    return [out for out, _ in results]


def test_many_writers_lose_and_double_nothing(transport: NativeTransport, engine_url: str) -> None:
    """Also the first of a workflow and of a key, which several insert at the same moment."""
    run_together(WRITER, [[engine_url, str(writer), str(WRITES)] for writer in range(WRITERS)])
    shared = WRITES // 5
    expected = WRITERS * (WRITES - shared) + shared
    names = [name for (name,) in Jobs(transport).rows("name")]
    assert len(names) == len(set(names)) == expected
    assert Jobs(transport).ids() == list(range(1, expected + 1)), "ids are dense"


def test_claims_of_many_processes_are_disjoint_and_complete(transport: NativeTransport, engine_url: str) -> None:
    jobs = Jobs(transport)
    parent = Job(command="p")
    ids = jobs.add(
        [parent, *(Job(command="x", priority=i % 3, parents=[parent] if i % 4 == 0 else []) for i in range(300))]
    )
    outputs = run_together(CLAIMER, [[engine_url] for _ in range(4)])
    claimed = [int(number) for out in outputs for number in out.split()]
    assert sorted(claimed) == list(ids)
    assert jobs.states() == {"JOB_FINISHED": len(ids)}
