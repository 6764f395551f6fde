"""Adding, choosing and changing jobs. Everything here becomes calls on a transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from balsam_core.client.slices import REPEAT, RETRY_REST, changes, removed_children_first, removed_jobs, told_how_far
from balsam_core.errors import Conflict, InvalidInput, NotFound
from balsam_core.model.calls import (
    MOST_JOBS,
    AddEdge,
    CountJobs,
    CountStates,
    GetAttempts,
    GetHistory,
    GetJobs,
    GetRows,
    KillJobs,
    Order,
    RetryJobs,
)
from balsam_core.model.filters import AllOf, AnyOf, Column, Compare, NoneOf, compared
from balsam_core.model.job import FIELDS, Job
from balsam_core.model.text import shortened, typed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from balsam_core.client.inserting import AddedIds
    from balsam_core.model.calls import Attempt, Call, Changed, Event, IfExists, RemovedJob, Where
    from balsam_core.transport.base import Transport

T = TypeVar("T")

CONDITIONS: tuple[type, ...] = (Compare, AllOf, AnyOf, NoneOf)
UNLIMITED = 2**31 - 1  # jobs
CASCADE = "cascade=True"


class JobQuery:
    """A query for jobs that has not run yet; every method returns a new query or runs it.

    Iterating gives :class:`Job` objects, page by page.
    """

    def __init__(
        self,
        transport: Transport,
        where: Where | None = None,
        *,
        order: Order | None = None,
        limit: int | None = None,
        before_change: Callable[[], object] = lambda: None,
    ) -> None:
        self._transport = transport
        self._before_change = before_change
        self._where = AllOf([]) if where is None else where
        self._order = order or Order()
        self._limit = limit

    def where(self, *conditions: Where, **equal: object) -> JobQuery:
        """Narrow the query: conditions such as ``Job.priority > 3``, or ``field=value``."""
        parts: list[Where] = []
        for condition in conditions:
            if not isinstance(condition, CONDITIONS):
                raise InvalidInput(f"{shortened(condition)} is no condition; write one like Job.state == 'FAILED'")
            parts.append(condition)
        for name, value in equal.items():
            if name not in FIELDS:
                raise InvalidInput(f"a job has no field {name!r}; fields are: {', '.join(FIELDS)}")
            parts.append(compared(name, "eq", value))
        inner = self._where.parts if isinstance(self._where, AllOf) else [self._where]
        return self._copy(AllOf([*inner, *parts]), self._order, self._limit)

    def order_by(self, field: Column | str, *, descending: bool = False) -> JobQuery:
        """Sort by a field instead of by id."""
        return self._copy(self._where, Order(_name_of(field), descending), self._limit)

    def limit(self, most: int | None) -> JobQuery:
        """Take at most so many jobs; None for all."""
        if most is not None and (type(most) is not int or most < 0):
            raise InvalidInput(f"limit() takes a number of jobs, 0 or more, not {shortened(most)}")
        return self._copy(self._where, self._order, most)

    def _copy(self, where: Where, order: Order, limit: int | None) -> JobQuery:
        return JobQuery(self._transport, where, order=order, limit=limit, before_change=self._before_change)

    # ---- reading

    def __iter__(self) -> Iterator[Job]:
        return self._read_pages(
            lambda limit, after: GetJobs(where=self._where, order=self._order, limit=limit, after=after),
            lambda job: job.id,
        )

    def rows(self, *fields: Column | str) -> Iterator[list[Any]]:
        """Read only some fields: a list of their values for each job."""
        names = [_name_of(field) for field in fields]
        wanted = names if "id" in names else [*names, "id"]
        id_index = wanted.index("id")
        rows = self._read_pages(
            lambda limit, after: GetRows(fields=wanted, where=self._where, order=self._order, limit=limit, after=after),
            lambda row: row[id_index],
        )
        for row in rows:
            yield row[: len(names)]

    def _read_pages(
        self, call: Callable[[int, int | None], Call[list[T]]], id_of: Callable[[T], int | None]
    ) -> Iterator[T]:
        """Read page by page in the order of ids; in another order, where a page can't be continued, all at once.

        ``call`` makes the call for at most so many jobs after an id.
        """
        paged = self._order == Order()
        left = UNLIMITED if self._limit is None else self._limit
        after: int | None = None
        while left > 0:
            limit = min(MOST_JOBS, left) if paged else left
            page = self._transport.run(call(limit, after))
            yield from page
            if not paged or len(page) < limit:
                return
            after = id_of(page[-1])
            left -= len(page)

    def count(self) -> int:
        """Count the jobs."""
        found = self._transport.run(CountJobs(where=self._where))
        return found if self._limit is None else min(found, self._limit)

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
        """Read the jobs into a pandas DataFrame with a column for each field.

        Raises:
            NotFound: pandas is not installed.
        """
        try:
            import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError as err:
            raise NotFound("to_dataframe() needs pandas, which is not installed; run: pip install pandas") from err
        return pd.DataFrame(list(self.rows(*FIELDS)), columns=list(FIELDS))

    # ---- changing; launchers that have died give their jobs back first

    def _stable_condition(self) -> Where:
        """Return a condition that stays true while the jobs are changed in slices."""
        if self._limit is None:
            return self._where
        return Compare("id", "in", self.ids())

    def kill(self, message: str = "") -> int:
        """Kill the jobs that have not ended; waiting descendants become PARENT_KILLED. Returns how many changed.

        It works in slices of at most 2,000 jobs, each a transaction: others see some killed before the others are.

        Raises:
            PartlyDone: An error came after some were killed, which stay so; the message says how many.
        """
        return self._change("killed", KillJobs(where=self._stable_condition(), message=message), REPEAT)

    def retry(self) -> int:
        """Start failed or killed jobs again; returns how many changed.

        Other jobs stay as they are, as do a killed job that its launcher has not ended yet, and one whose failed or
        killed parent is not started again with it. It works in slices of at most 2,000 jobs, each a transaction.

        Raises:
            Conflict: No job could be started, but one has failed or been killed; the message says what keeps it.
            PartlyDone: An error came after some were started, which stay so; the message says how many.
        """
        return self._change("retried", RetryJobs(where=self._stable_condition()), RETRY_REST)

    def remove(self, *, cascade: bool = False) -> list[RemovedJob]:
        """Remove the jobs from the database; their working directories stay. Returns the removed jobs.

        All are looked at first. Then it works in slices of at most 500 jobs, each a transaction.

        Args:
            cascade: Whether to remove all jobs that depend on them, too.

        Raises:
            Conflict: A launcher holds a job, or another job that has not finished depends on one; none was removed.
            PartlyDone: An error came after some were removed, such as a launcher that took a job meanwhile; the message
                says how many, and the rest is still there.
        """
        self._before_change()
        runner = self._transport
        if cascade:
            slices = removed_children_first(runner, self.ids(), cascade=CASCADE, descendants=True)
        else:
            slices = removed_jobs(runner, self._stable_condition(), cascade=CASCADE)
        removed: list[RemovedJob] = []
        with told_how_far("removed", removed):
            for some in slices:
                removed += some
        return removed

    def _change(self, verb: str, call: Call[Changed], rest: str) -> int:
        self._before_change()
        ids: list[int] = []
        why = ""
        with told_how_far(verb, ids, rest=rest):
            for changed in changes(self._transport, call):
                ids += changed.ids
                why = changed.why
        if why and not ids:
            raise Conflict(why)
        return len(ids)


class Jobs(JobQuery):
    """All jobs of a database: ``db.jobs``."""

    def add(self, jobs: Job | Iterable[Job], *, if_exists: IfExists = "error") -> AddedIds:
        """Add jobs: all of them or none, visible to others at once; their ``id`` is filled in.

        In a list, parents and children may have any order. An iterator is read as it goes; memory stays flat but for
        the ids. After an error the jobs of a list have no ids, as before; those that an iterator gave may keep one, so
        make them anew.

        A job whose ``key`` exists is not added again, so that a program may be run again and adds what is missing. Its
        content is every field that its user gives, and its parents. Dependencies that were added later
        (:meth:`add_dependency`) don't make it another one.

        Args:
            jobs: The jobs.
            if_exists: What happens where a job's key exists with other content. "error": it is refused. "keep": the
                stored job stays as it is; its content is not looked at. "update": the stored job gets the new content,
                if it has not started. Of more than 2,000 jobs, the existing ones are updated after the new ones are
                added.

        Returns:
            The ids in the order of the jobs, for a key that exists the stored job's; ``existing`` says what became of
            those.

        Raises:
            InvalidInput: A value can't be right, or the jobs depend on each other in a circle.
            NotFound: An app or a parent doesn't exist.
            Conflict: A key exists with other content, or is given to two different jobs; the message shows the
                difference. Or a job that is to be updated has started.
            OutcomeUnknown: They may have been added, or not.
            PartlyDone: All new ones were added, but not all existing ones updated. After any other error, nothing was
                changed.
        """
        from balsam_core.client.inserting import insert

        return insert(self._transport, [jobs] if isinstance(jobs, Job) else jobs, if_exists)

    def get(self, job_id: int) -> Job:
        """Read one job.

        Raises:
            NotFound: There is no such job.
        """
        found = self._transport.run(GetJobs(where=Compare("id", "eq", added_id(job_id)), limit=1))
        if not found:
            raise NotFound(f"there is no job {job_id}")
        return found[0]

    def add_dependency(self, parent: int | Job, child: int | Job) -> bool:
        """Make ``child`` wait for ``parent``; returns False where it did already.

        Raises:
            InvalidInput: It would close a circle.
            Conflict: The child has started already.
        """
        return self._transport.run(AddEdge(parent=added_id(parent), child=added_id(child)))

    def history(self, *jobs: int | Job) -> list[Event]:
        """Read everything that happened to the jobs, oldest first."""
        return self._transport.run(GetHistory(jobs=[added_id(job) for job in jobs]))

    def attempts(self, *jobs: int | Job) -> list[Attempt]:
        """Read the ended attempts at the jobs: where each ran, how long, what it took and how it ended."""
        return self._transport.run(GetAttempts(jobs=[added_id(job) for job in jobs]))


def added_id(job: int | Job) -> int:
    """Return the id of a job that was added.

    Raises:
        InvalidInput: It was not added, or is neither a job nor an id.
    """
    job_id = job.id if isinstance(job, Job) else job
    if job_id is None and isinstance(job, Job):
        raise InvalidInput(f"{job!r} is not added yet: it has no id")
    if type(job_id) is not int or abs(job_id) >= 2**63:
        raise InvalidInput(f"{typed(job)} is no job: give a Job or an id, which is an int of at most 64 bits")
    return job_id


def _name_of(field: Column | str) -> str:
    name = field.name if isinstance(field, Column) else field
    if name not in FIELDS:
        raise InvalidInput(f"a job has no field {shortened(name)}; fields are: {', '.join(FIELDS)}")
    return name
