"""What ``balsam ls`` lists: jobs, their history, their numbers by state and workflow. Memory stays flat."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from balsam_core.cli.records import EVENT, JobRows, event_rows, field_names
from balsam_core.cli.selectors import SLICE, choose, parse
from balsam_core.model.calls import MOST_JOBS, CountStates
from balsam_core.model.filters import AllOf, Compare
from balsam_core.model.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balsam_core.cli.output import Printer
    from balsam_core.client.database import Database
    from balsam_core.client.jobs import JobQuery
    from balsam_core.model.filters import Condition

__all__ = ["Found", "conditions", "counts", "history", "jobs"]

IN_TABLE = ("id", "state", "workflow", "name", "runs", "state_since")
HISTORY_SLICE = 200  # jobs whose events are read at once


def conditions(db: Database, options: dict[str, Any], states: Sequence[str]) -> list[Condition]:
    """Return the conditions that together are what the options ask for, each small enough for one call."""
    parts: list[Condition] = []
    if options["name"]:
        parts.append(Compare("name", "contains", options["name"]))
    if states:
        parts.append(Compare("state", "in", list(states)))
    parts += [Compare(field, "eq", options[field]) for field in ("workflow", "app") if options[field] is not None]
    if not options["selectors"]:
        return [AllOf(parts)]
    chosen = choose(db, parse(options["selectors"]))
    return [AllOf([one, *parts]) for one in chosen.conditions]


class Found:
    """The jobs that meet the conditions, the newest ``limit`` of them, the oldest of these first.

    Attributes:
        more: Whether there are more than the limit; known once they were read.
    """

    def __init__(self, db: Database, wheres: list[Condition], limit: int) -> None:
        self._jobs = db.jobs
        self._wheres = wheres
        self._limit = limit
        self.more = False

    @property
    def filtered(self) -> bool:
        """Whether anything was asked for."""
        return self._wheres != [AllOf([])]

    def rows(self, fields: Sequence[str]) -> Iterator[list[Any]]:
        """Give some fields of each job."""
        if len(self._wheres) == 1:
            query = self._jobs.where(self._wheres[0])
            if not self._limit:
                yield from query.rows(*fields)
            elif self._limit < MOST_JOBS:
                newest = list(query.order_by("id", descending=True).limit(self._limit + 1).rows(*fields))
                self.more = len(newest) > self._limit
                yield from reversed(newest[: self._limit])
            else:
                oldest = self._oldest_shown(query)
                yield from query.where(Compare("id", "ge", oldest)).rows(*fields)
            return
        # Many single ids, from stdin: they are in memory anyway.
        ids = sorted({job for where in self._wheres for job in self._jobs.where(where).ids()})
        self.more = 0 < self._limit < len(ids)
        ids = ids[-self._limit :]
        for at in range(0, len(ids), SLICE):
            yield from self._jobs.where(Compare("id", "in", ids[at : at + SLICE])).rows(*fields)

    def _oldest_shown(self, query: JobQuery) -> int:
        """Return the id where the newest ``limit`` jobs begin, reading ids only."""
        left = self._limit
        oldest = 2**63 - 1
        while True:
            page = query.where(Compare("id", "lt", oldest)).order_by("id", descending=True)
            ids = page.limit(min(MOST_JOBS, left + 1)).ids()
            if left < len(ids):
                self.more = True
                return ids[left - 1] if left else oldest
            left -= len(ids)
            if len(ids) < MOST_JOBS:
                return 0
            oldest = ids[-1]


def jobs(db: Database, printer: Printer, found: Found, fields: str | None) -> None:
    """List jobs."""
    if printer.form == "ids":
        names: Sequence[str] = ["id"]
    elif fields is not None:
        names = field_names(fields, JobRows.known)
    else:
        names = IN_TABLE if printer.for_people else field_names("all", JobRows.known)
    rows = JobRows(db, names)
    printer.rows(rows.names, map(rows.row, found.rows(rows.fetched)), empty=_nothing(found.filtered))


def history(db: Database, printer: Printer, found: Found) -> None:
    """List the states that jobs went through."""

    def events() -> Iterator[Sequence[object]]:
        ids = (row[0] for row in found.rows(["id"]))
        while some := list(islice(ids, HISTORY_SLICE)):
            yield from event_rows(sorted(db.jobs.history(*some), key=lambda event: event.job_id))

    printer.rows(EVENT, events(), empty=_nothing(found.filtered))


def counts(db: Database, printer: Printer, wheres: list[Condition], *, by_workflow: bool, by_states: bool) -> None:
    """List how many jobs are in each state, in each workflow, or both."""
    table: dict[str, dict[str, int]] = {}
    for where in wheres:
        for workflow, states in db.run(CountStates(where=where, by_workflow=by_workflow)).items():
            total = table.setdefault(workflow, {})
            for state, number in states.items():
                total[state] = total.get(state, 0) + number
    ordered = {name: {state: states[state] for state in State if states.get(state)} for name, states in table.items()}
    empty = _nothing(wheres != [AllOf([])])
    if not by_workflow:
        printer.rows(("state", "jobs"), ordered.get("", {}).items(), empty=empty)
    elif by_states:
        rows = [(name, state, number) for name in sorted(ordered) for state, number in ordered[name].items()]
        printer.rows(("workflow", "state", "jobs"), rows, empty=empty)
    else:
        sums = ((name, sum(ordered[name].values()), _states(printer, ordered[name])) for name in sorted(ordered))
        printer.rows(("workflow", "jobs", "states"), sums, empty=empty)


def _states(printer: Printer, states: dict[State, int]) -> object:
    return ", ".join(f"{number} {state}" for state, number in states.items()) if printer.for_people else states


def _nothing(filtered: bool) -> str:
    return "No job matches." if filtered else "There are no jobs yet: see balsam job and balsam run."
