"""Jobs, events and apps as rows of named values: the stable names of JSON and CSV output."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from balsam_core.cli.values import similar
from balsam_core.model.job import FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balsam_core.client.database import Database
    from balsam_core.model.calls import Event
    from balsam_core.model.job import Job

__all__ = ["ALL", "EVENT", "JobRows", "event_rows", "field_names", "job_record"]

_FIRST = ("id", "workflow", "name", "state", "state_since", "return_code")
ALL = (*_FIRST, *(name for name in FIELDS if name not in _FIRST))
"""A job's fields in the order in which they are printed."""

COMPUTED = {"runs": ("app", "command"), "workdir": ("id", "workflow", "name", "user_workdir")}
"""Fields that only the command line has, and what they are made from."""

EVENT = ("job_id", "at", "state", "attempt", "message")
"""The fields of a line of history."""


def job_record(job: Job) -> dict[str, object]:
    """Return all fields of a job by name."""
    return {name: getattr(job, name) for name in ALL}


def event_rows(events: Sequence[Event]) -> Iterator[tuple[object, ...]]:
    """Give a row of :data:`EVENT` for each state that a job came to; the message stands with the last of a write."""
    for event in events:
        if not event.transitions:
            yield event.job_id, event.at, None, event.attempt, event.message
        for place, (state, age) in enumerate(event.transitions, 1):
            message = event.message if place == len(event.transitions) else ""
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
            raise click.UsageError(f"--fields: there is no field {name[:60]!r}{similar(name, known)}")
    return list(dict.fromkeys(names))


class JobRows:
    """Some fields of jobs, computed ones among them, from the fields that the database has.

    Args:
        db: The database.
        names: The fields to give.
    """

    known = (*ALL, *COMPUTED)

    def __init__(self, db: Database, names: Sequence[str]) -> None:
        self.names = list(names)
        self.fetched = list(dict.fromkeys(part for name in names for part in COMPUTED.get(name, (name,))))
        self._directory = db.directory
        self._plain = self.fetched == self.names

    def row(self, fetched: Sequence[object]) -> Sequence[object]:
        """Return the values of one job from those of :attr:`fetched`."""
        if self._plain:
            return fetched
        values = dict(zip(self.fetched, fetched, strict=True))
        return [self._computed(name, values) if name in COMPUTED else values[name] for name in self.names]

    def _computed(self, name: str, values: dict[str, object]) -> object:
        if name == "runs":
            return values["app"] or values["command"]
        from balsam_core.dbdir.workdirs import workdir
        from balsam_core.model.calls import ParentRef

        reference = ParentRef(*(values[part] for part in COMPUTED["workdir"]))  # type: ignore[arg-type]
        return str(workdir(self._directory, reference))
