"""The tables. A change here needs a migration in ``migrations/versions``; a test compares the two.

How claiming stays fast: ``jobs.claim_class`` is the job's resource class while the job may be claimed (nobody holds it,
and its state lets a launcher go on with it) and NULL otherwise. A launcher works out which classes fit and asks for
each by equality, in the order of the index, so that jobs that don't fit, or are held, or have ended cost nothing.

A delayed retry (``not_before``) is not claimable until its time has come and a launcher promotes it.

How inserting stays atomic: jobs of a staged insert carry its id and are hidden from every reader until the row of the
insert says ``published``. The id 0 stands for no staged insert.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, ForeignKey, Index, Integer, MetaData, Table

from balsam_core.schema.types import (
    TABLE_OPTIONS,
    Blob,
    Id,
    JSONDocument,
    LongText,
    Number,
    ShortText,
    UTCDateTime,
    partial_index,
    without_statistics,
)

metadata = MetaData(
    info=TABLE_OPTIONS,
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    },
)

meta = Table(
    "meta",
    metadata,
    Column("name", ShortText(64), primary_key=True, comment="db_id, epoch"),
    Column("value", LongText(), nullable=False),
    sqlite_with_rowid=False,
)

counters = Table(
    "counters",
    metadata,
    Column("name", ShortText(64), primary_key=True, comment="the table that the ids are for"),
    Column("last", BigInteger, nullable=False, comment="the newest id given"),
    sqlite_with_rowid=False,
)

processed_requests = Table(
    "processed_requests",
    metadata,
    Column("client_id", ShortText(32), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("reply", Blob(), comment="encoded answer; NULL where it is rebuilt from the rows"),
    Column("processed_at", UTCDateTime, nullable=False),
    sqlite_with_rowid=False,
)

workflows = Table(
    "workflows",
    metadata,
    Column("id", Id(), primary_key=True, autoincrement=False),
    Column("name", ShortText(255), nullable=False, unique=True),
)

apps = Table(
    "apps",
    metadata,
    Column("id", Id(), primary_key=True, autoincrement=False),
    Column("name", ShortText(255), nullable=False, unique=True),
    Column("executable", LongText(), nullable=False),
    Column("description", LongText()),
    Column("preprocess", LongText()),
    Column("postprocess", LongText()),
    Column("environ", JSONDocument()),
)

resource_classes = Table(
    "resource_classes",
    metadata,
    Column("id", Id(), primary_key=True, autoincrement=False),
    Column("shape", ShortText(160), nullable=False, unique=True, comment="the other columns as one text"),
    Column("num_nodes", Integer, nullable=False),
    Column("ranks_per_node", Integer, nullable=False),
    Column("threads_per_rank", Integer, nullable=False),
    Column("threads_per_core", Integer, nullable=False),
    Column("gpus_per_rank", Double, nullable=False),
    Column("node_packing_count", Integer, nullable=False),
    Column("wall_minutes", Integer, nullable=False, comment="wall_time_minutes, rounded up"),
)

launchers = Table(
    "launchers",
    metadata,
    Column("id", Id(), primary_key=True, autoincrement=False),
    Column("host", ShortText(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("boot_id", ShortText(64), nullable=False),
    Column("process_start", Double, nullable=False, comment="seconds, by the clock of process starts"),
    Column("workflow", ShortText(255), nullable=False),
    Column("started_at", UTCDateTime, nullable=False),
    Column("seen_at", UTCDateTime, nullable=False),
    Column("lease_until", UTCDateTime, nullable=False),
    Column("ended_at", UTCDateTime, comment="when it said goodbye, or was found dead"),
    Index(None, "ended_at", "lease_until"),
)

staged_inserts = Table(
    "staged_inserts",
    metadata,
    Column("id", Id(), primary_key=True, autoincrement=False),
    Column("published", Boolean(create_constraint=False), nullable=False),
    Column(
        "invalidated", Boolean(create_constraint=False), nullable=False, comment="another insert took over its keys"
    ),
    Column("first_id", BigInteger, nullable=False, comment="lowest id of its jobs, 0 for none"),
    Column("last_id", BigInteger, nullable=False, comment="highest id of its jobs, 0 for none"),
    Column("updated_at", UTCDateTime, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Id(), primary_key=True, autoincrement=False),
    Column("workflow_id", BigInteger, ForeignKey("workflows.id"), nullable=False),
    Column("app_id", BigInteger, ForeignKey("apps.id"), comment="NULL: the job's own command"),
    Column("resource_class_id", BigInteger, ForeignKey("resource_classes.id"), nullable=False),
    Column("state", ShortText(20), nullable=False),
    Column("claim_class", BigInteger, comment="resource_class_id while claimable, else NULL"),
    Column("priority", Integer, nullable=False),
    Column("launcher_id", BigInteger, comment="who holds it"),
    Column("claim_request_seq", BigInteger, comment="the launcher's call that claimed it"),
    Column("attempt", Integer, nullable=False),
    Column("retries", Integer, nullable=False),
    Column("parents_left", Integer, nullable=False, comment="parents that have not finished"),
    Column("staged_insert_id", BigInteger, nullable=False),
    Column("key", ShortText(255)),
    Column("created_at", UTCDateTime, nullable=False),
    Column("state_since", UTCDateTime, nullable=False),
    Column("return_code", Integer),
    Column("wall_time_minutes", Integer, nullable=False),
    Column("time_limit_minutes", Number(), nullable=False, server_default="0"),
    Column("max_retries", Integer, nullable=False),
    Column("retry_delay_seconds", Number(), nullable=False, server_default="0"),
    Column("not_before", UTCDateTime, comment="a delayed retry may begin then; else NULL"),
    Column("launchers_lost", Integer, nullable=False, server_default="0", comment="in a row, while they ran it"),
    Column("wait_for_parents", Boolean(create_constraint=False), nullable=False),
    Column("post_error_handler", Boolean(create_constraint=False), nullable=False),
    Column("post_timeout_handler", Boolean(create_constraint=False), nullable=False),
    Column("auto_timeout_retry", Boolean(create_constraint=False), nullable=False),
    Column("name", LongText(), nullable=False),
    Column("description", LongText()),
    Column("args", LongText()),
    Column("command", LongText()),
    Column("parameters", JSONDocument()),
    Column("input_files", JSONDocument()),
    Column("input_mode", ShortText(8), nullable=False, server_default="link"),
    Column("stage_in", LongText()),
    Column("stage_out", LongText()),
    Column("stage_out_files", JSONDocument()),
    Column("user_workdir", LongText()),
    Column("environ", JSONDocument()),
    Column("preprocess", LongText()),
    Column("postprocess", LongText()),
    Column("cpu_affinity", LongText()),
    Column("data", JSONDocument()),
    partial_index(None, "key", without="key", unique=True),
    Index(None, "state", "id"),
    Index(None, "workflow_id", "id"),
    partial_index(None, "launcher_id", without="launcher_id"),
    partial_index(None, "not_before", without="not_before"),
)
_claim = (jobs.c.claim_class, jobs.c.priority.desc(), jobs.c.id)
partial_index("ix_jobs_claim", *_claim, without="claim_class")
partial_index("ix_jobs_workflow_claim", jobs.c.workflow_id, *_claim, without="claim_class")
without_statistics(jobs.c.claim_class)

job_edges = Table(
    "job_edges",
    metadata,
    Column("parent_id", BigInteger, primary_key=True, autoincrement=False),
    Column("child_id", BigInteger, primary_key=True, autoincrement=False),
    Index(None, "child_id"),
    sqlite_with_rowid=False,
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", Id(), primary_key=True),
    Column("job_id", BigInteger, nullable=False),
    Column("at", UTCDateTime, nullable=False),
    Column("transitions", ShortText(1000), nullable=False, comment="STATE seconds-before-at, ..."),
    Column("message", LongText()),
    Column("attempt", Integer, nullable=False),
    Index(None, "job_id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("launcher_id", BigInteger, nullable=False),
    Column("host", ShortText(255), nullable=False),
    Column("started_at", UTCDateTime, nullable=False),
    Column("elapsed", Number(), comment="seconds that the run took; NULL where there was none"),
    Column("cpu_seconds", Number(), comment="of the run, user and system; NULL for unknown"),
    Column("max_memory", BigInteger, comment="bytes, of the run; NULL for unknown"),
    Column("return_code", Integer, comment="of the run"),
    Column("outcome", ShortText(20), nullable=False, comment="the state in which it ended"),
    sqlite_with_rowid=False,
)
