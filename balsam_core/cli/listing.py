"""What ``balsam ls`` lists: jobs, their history, their counts by state and workflow. Memory stays flat."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from balsam_core.cli.records import EVENT_FIELDS, JobRows, event_rows, field_names
from balsam_core.cli.selectors import SLICE, choose, parse
from balsam_core.model.calls import MOST_JOBS, CountStates, GetRootFailures
from balsam_core.model.filters import AllOf, Compare
from balsam_core.model.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balsam_core.cli.output import Printer
    from balsam_core.client.database import Database
    from balsam_core.client.jobs import JobQuery
    from balsam_core.model.filters import Condition

TABLE_FIELDS = ("id", "state", "workflow", "name", "runs", "state_since")
ROOT_FIELDS = ("id", "workflow", "name", "state_since", "also_failed", "reason")
HISTORY_SLICE = 200  # jobs whose events are read at once


def conditions(db: Database, options: dict[str, Any], states: Sequence[str]) -> list[Condition]:
    """Return conditions, each small enough for one call; the options ask for the jobs that meet one of them."""
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


class FoundJobs:
    """The newest ``limit`` jobs that meet a condition, in the order of their ids.

    Attributes:
        conditions: The conditions.
        more: Whether there are more than the limit; known after reading.
    """

    def __init__(self, db: Database, conditions: list[Condition], limit: int) -> None:
        self.conditions = conditions
        self.more = False
        self._jobs = db.jobs
        self._limit = limit

    @property
    def empty_text(self) -> str:
        """What to say when there are none."""
        filtered = self.conditions != [AllOf([])]
        return "No job matches." if filtered else "There are no jobs yet: see balsam job and balsam run."

    def rows(self, fields: Sequence[str]) -> Iterator[list[Any]]:
        """Give some fields of each job."""
        if len(self.conditions) == 1:
            query = self._jobs.where(self.conditions[0])
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
        # Several conditions come from many single ids, which are in memory anyway.
        ids = sorted({job for condition in self.conditions for job in self._jobs.where(condition).ids()})
        self.more = 0 < self._limit < len(ids)
        ids = ids[-self._limit :]
        for at in range(0, len(ids), SLICE):
            yield from self._jobs.where(Compare("id", "in", ids[at : at + SLICE])).rows(*fields)

    def _oldest_shown(self, query: JobQuery) -> int:
        """Return the lowest id of the newest ``limit`` jobs, reading ids only."""
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


def list_jobs(db: Database, printer: Printer, found: FoundJobs, fields: str | None) -> None:
    """List jobs."""
    if printer.format == "ids":
        names: Sequence[str] = ["id"]
    elif fields is not None:
        names = field_names(fields, JobRows.known)
    else:
        names = TABLE_FIELDS if printer.for_people else field_names("all", JobRows.known)
    rows = JobRows(db, names)
    printer.rows(rows.names, map(rows.row, found.rows(rows.fetched)), empty=found.empty_text)


def list_root_failures(db: Database, printer: Printer, conditions: Sequence[Condition], limit: int) -> None:
    """List the newest jobs that failed by themselves, with the number of jobs that failed because of each."""
    counts: dict[int, int] = {}
    for where in conditions:
        found: dict[int, int] = db.run(GetRootFailures(where=where))
        counts |= found
    ids = sorted(counts)[-limit:]

    def rows() -> Iterator[Sequence[object]]:
        for at in range(0, len(ids), HISTORY_SLICE):
            some = ids[at : at + HISTORY_SLICE]
            why = {event.job_id: event.message for event in db.jobs.history(*some) if event.message}
            for row in db.jobs.where(Compare("id", "in", some)).rows(*ROOT_FIELDS[:-2]):
                yield [*row, counts[row[0]], why.get(row[0], "")]

    printer.rows(
        ROOT_FIELDS, rows(), empty="No job has failed." if conditions == [AllOf([])] else "No such job failed."
    )
    if len(ids) < len(counts):
        printer.note(f"... showing the newest {limit} of {len(counts)}: --limit 0 for all")


def list_history(db: Database, printer: Printer, found: FoundJobs) -> None:
    """List the states that jobs went through."""

    def events() -> Iterator[Sequence[object]]:
        ids = (row[0] for row in found.rows(["id"]))
        while some := list(islice(ids, HISTORY_SLICE)):
            yield from event_rows(sorted(db.jobs.history(*some), key=lambda event: event.job_id))

    printer.rows(EVENT_FIELDS, events(), empty=found.empty_text)


def list_counts(db: Database, printer: Printer, found: FoundJobs, *, by_workflow: bool, by_states: bool) -> None:
    """List how many jobs are in each state, in each workflow, or both."""
    table: dict[str, dict[str, int]] = {}
    for where in found.conditions:
        for workflow, states in db.run(CountStates(where=where, by_workflow=by_workflow)).items():
            total = table.setdefault(workflow, {})
            for state, count in states.items():
                total[state] = total.get(state, 0) + count
    ordered = {name: {state: states[state] for state in State if states.get(state)} for name, states in table.items()}
    if not by_workflow:
        printer.rows(("state", "jobs"), ordered.get("", {}).items(), empty=found.empty_text)
    elif by_states:
        rows = [(name, state, count) for name in sorted(ordered) for state, count in ordered[name].items()]
        printer.rows(("workflow", "state", "jobs"), rows, empty=found.empty_text)
    else:
        sums = ((name, sum(ordered[name].values()), _state_counts(printer, ordered[name])) for name in sorted(ordered))
        printer.rows(("workflow", "jobs", "states"), sums, empty=found.empty_text)


def _state_counts(printer: Printer, states: dict[State, int]) -> object:
    return ", ".join(f"{count} {state}" for state, count in states.items()) if printer.for_people else states
