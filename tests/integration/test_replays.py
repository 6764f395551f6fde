"""A write that was sent before is answered by a transaction that writes, too, so that its COMMIT waits for replicas."""

from __future__ import annotations

import time

import sqlalchemy as sa

from balsam_core import Job, open_db
from balsam_core.backends import registry
from balsam_core.model.calls import AddJobs, RequestId
from balsam_core.model.codec import encode_call
from balsam_core.schema.tables import processed_requests


def test_a_replay_changes_its_row(each_db):
    call, request_id = AddJobs(jobs=[Job(command="true")]), RequestId("c" * 32, 1, 0)
    engine = registry.load(each_db.db_type).create_engine(each_db, "reader")
    row = sa.select(processed_requests.c.processed_at).where(processed_requests.c.client_id == request_id.client)
    with open_db(each_db.path) as db:
        answers, times = [], []
        for _ in range(2):
            answers.append(db.transport.perform(AddJobs, encode_call(call), request_id, time.monotonic() + 60))
            with engine.connect() as conn:
                times.append(conn.execute(row).scalar_one())
        assert db.jobs.count() == 1
    engine.dispose()
    assert answers[0] == answers[1]
    assert times[0] < times[1]
