"""Records of attempts; delayed retries, time limits, copies of input files, lost launchers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, inspect, select, update

from balsam_core.schema.types import TABLE_OPTIONS, Number, ShortText, UTCDateTime, partial_index

if TYPE_CHECKING:
    from sqlalchemy import Connection

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

metadata = MetaData(
    info=TABLE_OPTIONS, naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"}
)

Table(
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


def new_columns() -> list[Column[Any]]:
    """Return the columns that are added to ``jobs``."""
    return [
        Column("retry_delay_seconds", Number(), nullable=False, server_default="0"),
        Column("not_before", UTCDateTime, comment="a delayed retry may begin then; else NULL"),
        Column("launchers_lost", Integer, nullable=False, server_default="0", comment="in a row, while they ran it"),
        Column("time_limit_minutes", Number(), nullable=False, server_default="0"),
        Column("input_mode", ShortText(8), nullable=False, server_default="link"),
    ]


def upgrade() -> None:
    """Add what is not there yet: where DDL commits by itself (MySQL), a killed run is continued."""
    bind = op.get_bind()
    for table in metadata.sorted_tables:
        table.create(bind, checkfirst=True)
    found = {column["name"] for column in inspect(bind).get_columns("jobs")}
    for column in new_columns():
        if column.name not in found:
            op.add_column("jobs", column)
    jobs = Table("jobs", MetaData(naming_convention=metadata.naming_convention), Column("not_before", UTCDateTime))
    index = partial_index("ix_jobs_not_before", jobs.c.not_before, without="not_before")
    if index.name not in {one["name"] for one in inspect(bind).get_indexes("jobs")}:
        index.create(bind)
    _let_node_packing_count_be_unlimited(bind)


def _let_node_packing_count_be_unlimited(bind: Connection) -> None:
    """Turn a count of 1, which was the default and limited nothing, into the new default 0 for no limit.

    The shape is the text of the columns from ``num_nodes`` to ``wall_minutes``; the count is the last but one.
    """
    classes = Table(
        "resource_classes",
        MetaData(),
        Column("id", BigInteger, primary_key=True),
        Column("shape", ShortText(160)),
        Column("node_packing_count", Integer),
    )
    for row in bind.execute(select(classes).where(classes.c.node_packing_count == 1)).all():
        parts = row.shape.split(",")
        parts[-2] = "0"
        values = {"shape": ",".join(parts), "node_packing_count": 0}
        bind.execute(update(classes).where(classes.c.id == row.id).values(values))
