"""The hooks that a backend may leave out: bulk insert, backup and restore."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from balsam_core import open_db
from balsam_core.dbdir.directory import DBDir
from balsam_core.model.job import Job
from balsam_core.plugin_types import ServerPolicy
from balsam_core.schema.prepared import Insertion, Rows
from balsam_core.schema.types import Blob, Id, JSONDocument, LongText, ShortText, UTCDateTime
from balsam_core.testing.cli import balsam
from balsam_core.watchdog import control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy import Engine

    from balsam_core import Database
    from balsam_core.backends.registry import Backend
    from balsam_core.client.jobs import Jobs
    from balsam_core.testing.fixtures import SuiteDB

TEXTS = [
    *("", " ", "a", "\\", "\\N", "\\.", "\\t", "\t", "\n", "\r\n", "'", '"', ",", "NULL"),
    *("é", "🎈", "\x01\x7f", "%s", "x" * 70_000),
]

TABLE = sa.Table(
    "conformance_bulk",
    sa.MetaData(),
    sa.Column("id", Id(), primary_key=True, autoincrement=False),
    sa.Column("word", ShortText(255)),
    sa.Column("text", LongText()),
    sa.Column("document", JSONDocument()),
    sa.Column("blob", Blob()),
    sa.Column("time", UTCDateTime),
    sa.Column("flag", sa.Boolean(create_constraint=False)),
    sa.Column("small", sa.Integer),
    sa.Column("big", sa.BigInteger),
    sa.Column("real", sa.Double),
)
EMPTY: dict[str, Any] = dict.fromkeys(("word", "text", "document", "blob", "time", "flag", "small", "big", "real"))


def rows() -> list[dict[str, Any]]:
    """Return rows with every kind of value that our tables hold."""
    values: list[dict[str, Any]] = [{}]
    values += [{"word": text[:200], "text": text, "document": {text: [text]}, "blob": text.encode()} for text in TEXTS]
    values += [{"blob": bytes(range(256)) * 4}, {"document": {"a": [1, 2.5, None, True, {}]}}]
    values += [{"flag": flag, "small": small} for flag, small in ((True, 2**31 - 1), (False, -(2**31)))]
    values += [{"big": big, "real": real} for big, real in ((2**63 - 1, 5e-324), (-(2**63), 1e300), (0, -0.1))]
    values += [{"time": datetime(2026, 1, 2, 3, 4, 5, microsecond, UTC)} for microsecond in (0, 1, 999_999)]
    values += [{"small": number} for number in range(100)]
    return [{"id": number, **EMPTY, **row} for number, row in enumerate(values)]


@pytest.fixture
def bulk(backend: Backend, owner: Callable[[], AbstractContextManager[Engine]]) -> Iterator[Engine]:
    if not backend.has("balsam_bulk_insert"):
        pytest.skip("balsam_bulk_insert is not implemented")
    with owner() as made:
        TABLE.create(made)
        yield made
        TABLE.drop(made)


def insert(backend: Backend, conn: sa.Connection, given: list[dict[str, Any]]) -> None:
    """Hand rows to the hook as the core does: in the driver's form."""
    columns: dict[str, Sequence[Any]] = {column.name: [row[column.name] for row in given] for column in TABLE.columns}
    backend.bulk_insert(conn, *Insertion(TABLE).as_rows(conn.dialect, Rows(len(given), columns=columns)))


@pytest.mark.once
def test_a_bulk_insert_stores_what_a_plain_one_does(backend: Backend, bulk: Engine) -> None:
    query = sa.select(TABLE).order_by(TABLE.c.id)
    with bulk.begin() as conn:
        conn.execute(TABLE.insert(), rows())
    with bulk.begin() as conn:
        plain = [dict(row) for row in conn.execute(query).mappings()]
        conn.execute(TABLE.delete())
    with bulk.begin() as conn:
        insert(backend, conn, rows())
    with bulk.begin() as conn:
        fast = [dict(row) for row in conn.execute(query).mappings()]
    assert fast == plain == rows()


@pytest.mark.once
def test_a_bulk_insert_belongs_to_the_open_transaction(backend: Backend, bulk: Engine) -> None:
    count = sa.select(sa.func.count()).select_from(TABLE)
    with bulk.connect() as conn, conn.begin() as transaction:
        insert(backend, conn, rows())
        assert conn.execute(count).scalar_one() == len(rows())
        transaction.rollback()
    with bulk.connect() as conn:
        assert conn.execute(count).scalar_one() == 0


@pytest.mark.once
def test_a_refused_bulk_insert_is_the_drivers_error(backend: Backend, bulk: Engine) -> None:
    with pytest.raises(sa.exc.IntegrityError), bulk.begin() as conn:
        insert(backend, conn, [*rows(), rows()[0]])
    with bulk.begin() as conn:
        insert(backend, conn, rows())


def test_jobs_that_are_added_in_bulk_are_like_others(jobs: Jobs) -> None:
    given = [
        Job(
            command="x",
            name=text[:200] or "job",
            description=text,
            workflow=f"w{text[:100]}",
            parameters={text: text},
            key=f"{number} {text[:100]}",
        )
        for number, text in enumerate(TEXTS * 10)
    ]
    ids = jobs.add(given)
    for found, job, number in zip(jobs, given, ids, strict=True):
        assert found.id == number
        assert (found.name, found.description, found.workflow) == (job.name, job.description, job.workflow)
        assert (found.parameters, found.key) == (job.parameters, job.key)


def test_a_restored_backup_is_the_db_as_it_was(
    backend: Backend,
    suite_db: SuiteDB,
    db: Database,
    options: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if not (backend.has("balsam_backup") and backend.has("balsam_restore")):
        pytest.skip("balsam_backup and balsam_restore are not implemented")
    parent = Job(command="x", name=TEXTS[-3], description="🎈\\N\t", data={"x": [1e300, None]}, key="k")
    db.jobs.add([parent, *(Job(command="y", parents=[parent]) for _ in range(100))])
    folder = tmp_path_factory.mktemp("backup")
    saved, target = folder / "saved", folder / "restored"
    balsam.good("--db", suite_db.path, "backup", saved)
    db.jobs.where(Job.id > parent.id).remove()
    words = [word for name, value in options.items() for word in ("--option", f"{name}={value}")]
    balsam.good("restore", saved, target, *words)
    restored = DBDir.open(target)
    if backend.identity.server is not ServerPolicy.NONE:
        control.start(restored)
    try:
        with open_db(target) as other:
            assert other.info().db_id == suite_db.directory.id
            assert other.jobs.states() == {"READY": 1, "AWAITING_PARENTS": 100}
            found = other.jobs.get(parent.id or 0)
            assert (found.name, found.description, found.data) == (parent.name, parent.description, parent.data)
            assert [event.transitions for event in other.jobs.history(parent)] == [
                event.transitions for event in db.jobs.history(parent)
            ]
            assert other.jobs.add(Job(command="x", key="k"), if_exists="keep")[0] == parent.id
            assert other.jobs.add(Job(command="x"))[0] == (parent.id or 0) + 101
    finally:
        control.stop(restored)
    assert db.jobs.count() == 1, "the DB that was saved is as it was"
