"""Standard names for tables and columns: the request ids of writes, staged inserts, state transitions."""

from __future__ import annotations

from alembic import op
from sqlalchemy import inspect, text

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

RENAMED_TABLES = {"applied": "processed_requests", "batches": "staged_inserts"}
RENAMED_COLUMNS = {
    "processed_requests": {"at": "processed_at"},
    "staged_inserts": {"robbed": "invalidated", "touched_at": "updated_at"},
    "jobs": {"batch_id": "staged_insert_id", "claim_call": "claim_request_seq"},
    "job_events": {"hops": "transitions"},
}


def upgrade() -> None:
    """Rename what still has its old name: where DDL commits by itself (MySQL), a killed run is continued."""
    tables = inspect(op.get_bind()).get_table_names()
    quote = op.get_bind().dialect.identifier_preparer.quote
    for old, new in RENAMED_TABLES.items():
        if old in tables:
            op.rename_table(old, new)
    for table, names in RENAMED_COLUMNS.items():
        # A new inspector, since one remembers what it has read.
        columns = {column["name"] for column in inspect(op.get_bind()).get_columns(table)}
        for old, new in names.items():
            if old in columns:
                # Not alter_column: on MySQL it needs the whole definition, and on SQLite it copies the table.
                op.execute(text(f"ALTER TABLE {table} RENAME COLUMN {quote(old)} TO {quote(new)}"))
    op.execute(text("UPDATE counters SET name = 'staged_inserts' WHERE name = 'batches'"))
