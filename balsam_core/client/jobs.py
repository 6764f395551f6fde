"""Jobs as users hold them: adding, choosing, changing in bulk. Everything here becomes calls on a transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from balsam_core.errors import InvalidInput, NotFound
from balsam_core.model.calls import (
    MOST_JOBS,
    AddEdge,
    CountJobs,
    CountStates,
    GetHistory,
    GetJobs,
    GetRows,
    KillJobs,
    Order,
    RemoveJobs,
    RetryJobs,
)
from balsam_core.model.filters import AllOf, AnyOf, Column, Compare, NoneOf
from balsam_core.model.job import FIELDS, Job

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from balsam_core.client.inserting import Ids
    from balsam_core.model.calls import Changed, Event, RemovedJob, Where
    from balsam_core.transport.base import Transport

__all__ = ["JobQuery", "Jobs"]

CONDITIONS: tuple[type, ...] = (Compare, AllOf, AnyOf, NoneOf)


class JobQuery:
    """A choice of jobs, not yet read; every method gives a new one or asks the database.

    Iterating gives :class:`Job` objects, page by page.
    """

    def __init__(
        self, transport: Transport, where: Where | None = None, *, order: Order | None = None, most: int | None = None
    ) -> None:
        self._transport = transport
        self._where = AllOf([]) if where is None else where
        self._order = order or Order()
        self._most = most

    def where(self, *conditions: Where, **equal: object) -> JobQuery:
        """Narrow the choice: conditions such as ``Job.priority > 3``, or ``field=value``."""
        parts: list[Where] = []
        for condition in conditions:
            if not isinstance(condition, CONDITIONS):
                msg = f"{condition!r} is no condition; write one like Job.state == 'FAILED'"
                raise InvalidInput(msg)
            parts.append(condition)
        for name, value in equal.items():
            if name not in FIELDS:
                msg = f"a job has no field {name!r}; fields are: {', '.join(FIELDS)}"
                raise InvalidInput(msg)
            parts.append(Compare(name, "eq", value))
        inner = self._where.parts if isinstance(self._where, AllOf) else [self._where]
        return JobQuery(self._transport, AllOf([*inner, *parts]), order=self._order, most=self._most)

    def order_by(self, field: Column | str, *, descending: bool = False) -> JobQuery:
        """Sort by a field instead of by id."""
        name = field.name if isinstance(field, Column) else field
        return JobQuery(self._transport, self._where, order=Order(name, descending), most=self._most)

    def limit(self, most: int) -> JobQuery:
        """Take at most so many."""
        return JobQuery(self._transport, self._where, order=self._order, most=most)

    # ---- reading

    def __iter__(self) -> Iterator[Job]:
        left = self._most
        after: int | None = None
        keyset = self._order == Order()
        while left is None or left > 0:
            if not keyset and left is None:
                left = 2**31 - 1  # only pages in the order of ids can be continued
            size = min(MOST_JOBS, left) if keyset and left is not None else left or MOST_JOBS
            page = self._transport.run(GetJobs(where=self._where, order=self._order, limit=size, after=after))
            yield from page
            if not keyset or len(page) < size:
                return
            after = page[-1].id
            left = None if left is None else left - len(page)

    def rows(self, *fields: Column | str) -> Iterator[list[Any]]:
        """Read only some fields: a list of their values for each job."""
        names = [field.name if isinstance(field, Column) else field for field in fields]
        left = self._most
        after: int | None = None
        keyset = self._order == Order()
        wanted = names if "id" in names else [*names, "id"]
        place = wanted.index("id")
        while left is None or left > 0:
            size = min(MOST_JOBS, left or MOST_JOBS) if keyset else left or 2**31 - 1
            page = self._transport.run(
                GetRows(fields=wanted, where=self._where, order=self._order, limit=size, after=after)
            )
            if page:
                after = page[-1][place]
            for row in page:
                yield row[: len(names)]
            if not keyset or len(page) < size:
                return
            left = None if left is None else left - len(page)

    def count(self) -> int:
        """Count the jobs."""
        found = self._transport.run(CountJobs(where=self._where))
        return found if self._most is None else min(found, self._most)

    def states(self) -> dict[str, int]:
        """Count the jobs by state."""
        return self._transport.run(CountStates(where=self._where)).get("", {})

    def first(self) -> Job | None:
        """Read the first job, None where there is none."""
        return next(iter(self.limit(1)), None)

    def ids(self) -> list[int]:
        """Read the ids."""
        return [row[0] for row in self.rows("id")]

    def to_jsonl(self, path: str | Path) -> int:
        """Write the jobs to a file, one JSON object a line; returns how many."""
        encode = msgspec.json.Encoder(order="deterministic").encode
        count = 0
        with open(path, "wb") as file:  # noqa: PTH123  (pathlib is not imported on this path)
            for job in self:
                file.write(encode({name: getattr(job, name) for name in FIELDS}) + b"\n")
                count += 1
        return count

    def to_dataframe(self) -> Any:  # noqa: ANN401  (pandas is optional)
        """Read the jobs into a pandas DataFrame, a column for each field.

        Raises:
            NotFound: pandas is not installed.
        """
        try:
            import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError as err:
            msg = "to_dataframe() needs pandas, which is not installed; run: pip install pandas"
            raise NotFound(msg) from err
        return pd.DataFrame(list(self.rows(*FIELDS)), columns=list(FIELDS))

    # ---- changing

    def _changing(self) -> Where:
        if self._most is None:
            return self._where
        return Compare("id", "in", self.ids())

    def kill(self, message: str = "") -> int:
        """Kill the jobs that have not ended; waiting descendants become PARENT_KILLED. Returns how many changed."""
        where = self._changing()
        return self._slices(lambda: self._transport.run(KillJobs(where=where, message=message)))

    def retry(self) -> int:
        """Start failed or killed jobs again; returns how many changed."""
        where = self._changing()
        return self._slices(lambda: self._transport.run(RetryJobs(where=where)))

    def remove(self) -> list[RemovedJob]:
        """Remove the jobs from the database; their working directories stay. Returns the removed jobs.

        Raises:
            Conflict: A job is running, or another job waits for it.
        """
        where = self._changing()
        removed: list[RemovedJob] = []
        while some := self._transport.run(RemoveJobs(where=where)):
            removed += some
        return removed

    @staticmethod
    def _slices(step: Any) -> int:  # noqa: ANN401
        total = 0
        while True:
            changed: Changed = step()
            total += len(changed.ids)
            if not changed.more:
                return total


class Jobs(JobQuery):
    """All jobs of a database: ``db.jobs``."""

    def add(self, jobs: Job | Iterable[Job]) -> Ids:
        """Add jobs: all of them or none, visible to others at once; their ``id`` is filled in.

        A list may hold parents and children in any order. An iterator is read as it goes, with flat memory.

        Returns:
            The ids in the order of adding. A job whose ``key`` exists keeps the existing job's id.

        Raises:
            InvalidInput: A value can't be right, or the jobs depend on each other in a circle.
            NotFound: An app or a parent doesn't exist.
        """
        from balsam_core.client.inserting import insert

        return insert(self._transport, [jobs] if isinstance(jobs, Job) else jobs)

    def get(self, job_id: int) -> Job:
        """Read one job.

        Raises:
            NotFound: There is no such job.
        """
        found = self._transport.run(GetJobs(where=Compare("id", "eq", job_id), limit=1))
        if not found:
            msg = f"there is no job {job_id}"
            raise NotFound(msg)
        return found[0]

    def add_dependency(self, parent: int | Job, child: int | Job) -> bool:
        """Make ``child`` wait for ``parent``; returns False where it did already.

        Raises:
            InvalidInput: It would close a circle.
            Conflict: The child has started already.
        """
        return self._transport.run(AddEdge(parent=_number(parent), child=_number(child)))

    def history(self, *jobs: int | Job) -> list[Event]:
        """Read everything that happened to the jobs, oldest first."""
        return self._transport.run(GetHistory(jobs=[_number(job) for job in jobs]))


def _number(job: int | Job) -> int:
    number = job.id if isinstance(job, Job) else job
    if number is None:
        msg = f"{job!r} is not added yet: it has no id"
        raise InvalidInput(msg)
    return number
