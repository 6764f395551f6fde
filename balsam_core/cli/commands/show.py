"""``balsam show``: everything about one job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from balsam_core.cli.command import Session, command, pass_session
from balsam_core.cli.selectors import choose_one

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_RELATIVES = 20  # parents or children that a table names


@command(examples=["balsam show 12", "balsam show last -o json"])
@click.argument("job")
@pass_session
def show(session: Session, job: str) -> None:
    """Show everything about one job.

    JOB is an id or 'last'. Shows all fields, parents and children, the working directory, what each attempt took, and
    what happened so far.
    """
    from balsam_core.cli.records import EVENT_FIELDS, attempt_record, event_rows, job_record
    from balsam_core.model.calls import GetEdges

    with session.open_db() as db:
        job_id = choose_one(db, job)
        found = db.jobs.get(job_id)
        record = job_record(found)
        record["children"] = [edge.child for edge in db.run(GetEdges(jobs=[job_id], children_of=True))]
        record["workdir"] = str(db.workdir(found))
        attempts = [attempt_record(one) for one in db.jobs.attempts(job_id)]
        events = list(event_rows(db.jobs.history(job_id)))
    record["attempts"] = attempts
    record["history"] = [dict(zip(EVENT_FIELDS[1:], row[1:], strict=True)) for row in events]
    session.printer().one(record, _format_lines(record, events), ids=job_id)


def _format_lines(record: dict[str, Any], events: list[tuple[object, ...]]) -> Iterator[str]:
    from balsam_core.cli.records import ATTEMPT_FIELDS
    from balsam_core.cli.table import cell, colours_wanted, lines

    size = max(map(len, record))
    for name, value in record.items():
        if name in {"history", "attempts"}:
            continue
        if name in {"parents", "children"} and isinstance(value, list) and len(value) > MOST_RELATIVES:
            shown = f"{', '.join(map(str, value[:MOST_RELATIVES]))}, ... ({len(value)} in all)"
        elif isinstance(value, list):
            shown = cell(", ".join(map(str, value)))
        else:
            shown = cell(value)
        yield f"{name.ljust(size)}  {shown}"
    if record["attempts"]:
        yield ""
        titles = [name.upper() for name in ATTEMPT_FIELDS]
        shown_attempts = (_attempt_cells(one) for one in record["attempts"])
        for line in lines(titles, shown_attempts, colours=colours_wanted()):
            yield line.rstrip()
    yield ""
    rows = [(at, state, message) for _, at, state, _, message in events]
    for line in lines(("since", "state", "message"), rows, colours=colours_wanted()):
        yield line.rstrip()


def _attempt_cells(attempt: dict[str, Any]) -> list[object]:
    """Return the values of an attempt for people."""
    memory = attempt["max_memory"]
    shown = {name: f"{attempt[name]:.2f} s" for name in ("elapsed", "cpu_seconds") if attempt[name] is not None}
    if memory is not None:
        shown["max_memory"] = f"{memory / 2**20:.1f} MiB"
    return list((attempt | shown).values())
