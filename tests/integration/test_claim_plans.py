"""How the databases carry out what a claim asks: by the claim indexes, in their order, locking what they return."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from balsam_core import Job
from balsam_core.backends import registry
from balsam_core.client.inserting import insert
from balsam_core.model.calls import ClaimJobs, RegisterLauncher, RequestId, Resources, Update, UpdateJobs
from balsam_core.model.codec import decode_result
from balsam_core.operations import claiming
from balsam_core.operations.execution import DatabaseClock, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import sqlalchemy as sa
    from sqlalchemy import Engine

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.transport.base import Transport

CLAIM_INDEXES = {"ix_jobs_claim", "ix_jobs_workflow_claim"}
JOBS = 1800
MORE = 12_000  # PostgreSQL may rightly sort the few of a small workflow
EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN (COSTS OFF)", "mysql": "EXPLAIN"}
ANALYZE = {"sqlite": "ANALYZE", "postgresql": "ANALYZE", "mysql": "ANALYZE TABLE jobs, resource_classes"}


@pytest.fixture
def filled(each_db: DBDir) -> Iterator[tuple[Transport, Engine]]:
    with opened(each_db) as made:
        yield made


@contextlib.contextmanager
def opened(db: DBDir) -> Iterator[tuple[Transport, Engine]]:
    """Give the plugin's transport and an engine for writers, on a DB that has been filled."""
    backend = registry.load(db.db_type)
    engine = backend.create_engine(db, "writer")
    with backend.open_transport(db) as transport:
        fill(transport)
        yield transport, engine
    engine.dispose()


def fill(transport: Transport, count: int = JOBS) -> None:
    """Add jobs of three workflows, two priorities and two resource classes, of which one fits few launchers."""
    insert(
        transport,
        [Job(command="x", workflow=f"w{i % 3}", num_nodes=1 + i % 2 * 63, priority=i // 2 % 2) for i in range(count)],
    )


def register(transport: Transport) -> int:
    return transport.run(RegisterLauncher(host="h", pid=1, boot_id="b", process_start=0.0, lease_seconds=900))


def questions(dialect: sa.Dialect) -> list[tuple[str, Any]]:
    """Return the statements that look for claimable jobs, in all shapes that there are."""
    needs = {"launcher": 1, "nodes": 64, "ranks": 1, "gpus": 0, "minutes": 60}
    given = needs | {"stamp": 1, "workflow": "w1", "class": 1, "floor": 1, "limit": 4}
    shapes = [claiming.ALL_HEADS, claiming.WORKFLOW_HEADS]
    for of_workflow in (False, True):
        shapes.append(claiming.below(of_workflow))
        for bounded in (False, True):  # by a lowest priority
            shapes += [claiming.locking(of_workflow, bounded)]
            if dialect.update_returning_multifrom:
                shapes += [claiming.claiming(of_workflow, bounded)]
    return [shape.bind(dialect, given) for shape in shapes]


def claim_and_release(transport: Transport, launcher: int) -> None:
    """Claim by all of these statements; each job is given once."""
    for nodes in (1, 64):  # one class fits, or several: then with a lowest priority
        for workflow in ("", "w1"):
            for limit in (4, JOBS):  # or so many that those below a priority are asked for
                call = ClaimJobs(launcher=launcher, limit=limit, resources=Resources(nodes=nodes), workflow=workflow)
                taken = transport.run(call).jobs
                assert len({job.id for job in taken}) == len(taken)
                assert len(taken) == min(limit, JOBS // (2 if nodes == 1 else 1) // (3 if workflow else 1))
                back = [Update(job=job.id or 0, attempt=job.attempt, release=True) for job in taken]
                for start in range(0, len(back), 1000):
                    assert transport.run(UpdateJobs(launcher=launcher, updates=back[start : start + 1000])) == {}


def faults(kind: str, plan: list[Any], *, analyzed: bool) -> list[str]:
    """Return the steps of a plan that look through jobs, or sort them."""
    if kind == "mysql":
        steps = [row._mapping for row in plan if row._mapping["table"] == "jobs"]
        return [
            str(dict(step))
            for step in steps
            if step["key"] not in {*CLAIM_INDEXES, "PRIMARY"}
            or (step["key"] == "PRIMARY" and step["type"] != "eq_ref")
            or "filesort" in step["Extra"]
        ]
    lines = [str(row[-1]) for row in plan]
    if kind == "sqlite":
        bad = [line for line in lines if "TEMP B-TREE" in line or "SCAN jobs" in line]
        searched = [line for line in lines if "SEARCH jobs" in line]
        return bad + [line for line in searched if "ix_jobs_" in line and not any(i in line for i in CLAIM_INDEXES)]
    # Without statistics PostgreSQL takes any list for a short one, which it may sort after the index has filtered.
    bad = [line for line in lines if "Seq Scan on jobs" in line or (analyzed and "Sort" in line)]
    return bad + [
        line
        for line in lines
        if "Scan" in line and " ix_jobs_" in line and not any(f" {index}" in line for index in CLAIM_INDEXES)
    ]


@pytest.mark.parametrize("analyzed", ["never", "while they wait to be published", "afterwards"])
def test_the_claim_index_serves_filter_and_order(filled: tuple[Transport, Engine], analyzed: str) -> None:
    transport, engine = filled
    kind = engine.dialect.name
    claim_and_release(transport, register(transport))
    if analyzed != "never":
        fill(transport, MORE)
        with engine.connect() as conn:
            if analyzed != "afterwards":
                conn.exec_driver_sql("UPDATE jobs SET claim_class = NULL")
            conn.exec_driver_sql(ANALYZE[kind])
            conn.exec_driver_sql("UPDATE jobs SET claim_class = resource_class_id")
            conn.commit()
    for statement, parameters in questions(engine.dialect):
        with engine.connect() as conn:
            plan = conn.exec_driver_sql(f"{EXPLAIN[kind]} {statement}", parameters).all()
        text = " ".join(str(row) for row in plan)
        assert any(index in text for index in CLAIM_INDEXES), (statement, plan)
        assert faults(kind, list(plan), analyzed=analyzed != "never") == [], (statement, plan)


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
@pytest.mark.parametrize("workflow", ["", "w2"])
@pytest.mark.parametrize("analyzed", [False, True])
def test_claims_at_the_same_moment_lock_only_what_they_return(
    make_db: Callable[[str], DBDir], kind: str, workflow: str, analyzed: bool
) -> None:
    with opened(make_db(kind)) as (transport, engine), contextlib.ExitStack() as stack:
        launchers = [register(transport) for _ in range(3)]
        if analyzed:
            with engine.connect() as conn:
                conn.exec_driver_sql(ANALYZE[engine.dialect.name])
                conn.commit()
        taken = []
        for launcher in launchers:  # each transaction stays open beside the next ones
            conn = stack.enter_context(engine.connect())
            call = ClaimJobs(launcher=launcher, limit=5, resources=Resources(), workflow=workflow)
            answer = write(conn, call, RequestId(f"{launcher:032}", 1, 0), DatabaseClock())
            taken.append([job.id for job in decode_result(ClaimJobs, answer).jobs])
        assert [len(ids) for ids in taken] == [5, 5, 5]
        assert len({number for ids in taken for number in ids}) == 15
