"""Jobs and events as rows of named values; the names in JSON and CSV output are stable."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from balsam_core.cli.text import quote
from balsam_core.cli.values import similar
from balsam_core.model.job import FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balsam_core.client.database import Database
    from balsam_core.model.calls import Attempt, Event
    from balsam_core.model.job import Job

_FIRST = ("id", "workflow", "name", "state", "state_since", "return_code")
JOB_FIELDS = (*_FIRST, *(name for name in FIELDS if name not in _FIRST))
"""A job's fields in the order in which they are printed."""

COMPUTED = {"runs": ("app", "command"), "workdir": ("id", "workflow", "name", "user_workdir")}
"""Fields that only the command line has, and the fields that they are computed from."""

EVENT_FIELDS = ("job_id", "at", "state", "attempt", "message")
"""The fields of a line of history."""


ATTEMPT_FIELDS = (
    "attempt", "outcome", "return_code", "host", "launcher_id", "started_at", "elapsed", "cpu_seconds", "max_memory",
)  # fmt: skip
"""The fields of an attempt in the order in which they are printed."""


def attempt_record(attempt: Attempt) -> dict[str, object]:
    """Return the fields of an attempt by name."""
    return {name: getattr(attempt, name) for name in ATTEMPT_FIELDS}


def job_record(job: Job) -> dict[str, object]:
    """Return all fields of a job by name."""
    return {name: getattr(job, name) for name in JOB_FIELDS}


def event_rows(events: Sequence[Event]) -> Iterator[tuple[object, ...]]:
    """Give a row of :data:`EVENT_FIELDS` for each state that was reached; a write's message is in its last row."""
    for event in events:
        if not event.transitions:
            yield event.job_id, event.at, None, event.attempt, event.message
        for number, (state, age) in enumerate(event.transitions, 1):
            message = event.message if number == len(event.transitions) else ""
            yield event.job_id, event.at - timedelta(seconds=age), state, event.attempt, message


def field_names(text: str, known: Sequence[str]) -> list[str]:
    """Return the fields that ``--fields`` names.

    Raises:
        click.UsageError: There is no such field.
    """
    names: list[str] = []
    for word in text.replace("-", "_").lower().split(","):
        name = word.strip()
        if name == "all":
            names += [one for one in known if one not in COMPUTED]
        elif name in known:
            names.append(name)
        else:
            raise click.UsageError(f"--fields: there is no field {quote(name)}{similar(name, known)}")
    return list(dict.fromkeys(names))


class JobRows:
    """Rows with some fields of jobs, also computed ones, made from the fields that the database has."""

    known = (*JOB_FIELDS, *COMPUTED)

    def __init__(self, db: Database, names: Sequence[str]) -> None:
        self.names = list(names)
        self.fetched = list(dict.fromkeys(part for name in names for part in COMPUTED.get(name, (name,))))
        self._directory = db.directory
        self._is_plain = self.fetched == self.names

    def row(self, fetched: Sequence[object]) -> Sequence[object]:
        """Return the values of one job from those of :attr:`fetched`."""
        if self._is_plain:
            return fetched
        values = dict(zip(self.fetched, fetched, strict=True))
        return [self._compute_field(name, values) if name in COMPUTED else values[name] for name in self.names]

    def _compute_field(self, name: str, values: dict[str, object]) -> object:
        if name == "runs":
            return values["app"] or values["command"]
        from balsam_core.dbdir.workdirs import workdir
        from balsam_core.model.calls import ParentRef

        reference = ParentRef(*(values[part] for part in COMPUTED["workdir"]))  # type: ignore[arg-type]
        return str(workdir(self._directory, reference))
