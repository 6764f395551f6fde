"""Every operation on the database as plain data: what travels to wherever it runs.

A call names an operation by its class and carries typed arguments; its type parameter is the type of the answer.
The bodies are in :mod:`balsam_core.operations`. A write takes effect exactly once however often it is sent; a read
changes nothing and sees one consistent state.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, get_args

import msgspec

from balsam_core.model.app import App
from balsam_core.model.filters import AllOf, Condition
from balsam_core.model.job import Job
from balsam_core.model.states import State
from balsam_core.model.text import shortened, title

R = TypeVar("R")

MOST_JOBS = 2000
"""Jobs in one call at the most, so that no message and no transaction is giant."""

Where = Condition
Limit = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
Slice = Annotated[int, msgspec.Meta(ge=1, le=MOST_JOBS)]
IfExists = Literal["error", "keep", "update"]
SomeJobs = Annotated[list[Job], msgspec.Meta(max_length=MOST_JOBS)]
EVERYTHING = AllOf([])


class Call(msgspec.Struct, Generic[R], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named operation with its arguments; ``R`` is the type of its answer."""

    writes: ClassVar[bool]

    @classmethod
    @cache
    def operation(cls) -> str:
        """Return the operation's name on the wire."""
        return "".join("_" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("_")

    @classmethod
    def result_type(cls) -> Any:  # noqa: ANN401  (any type form)
        """Return the type of the answer."""
        return get_args(cls.__orig_bases__[0])[0]  # type: ignore[attr-defined]


class Read(Call[R], Generic[R], frozen=True, kw_only=True):
    """A call that changes nothing."""

    writes = False


class Write(Call[R], Generic[R], frozen=True, kw_only=True):
    """A call that changes something, exactly once."""

    writes = True


WINDOW = 64
"""Writes of one client between the oldest unanswered one and the newest. An older one was answered and is not sent
again, so the stored answers are bounded, and a late copy of an old write is recognised."""


class RequestId(NamedTuple):
    """The identity of one write, the same however often it is sent.

    Attributes:
        client: The client's uuid in hex.
        seq: Number of this write, from 1.
        acked: All writes up to this number are answered; their stored answers may go.
    """

    client: str
    seq: int
    acked: int


# ---- the database itself


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """What a database says of itself."""

    db_id: str
    schema: str
    now: datetime


class GetInfo(Read[Info], frozen=True, kw_only=True):
    """Ask for identity, schema version and clock."""


class Prune(Write[int], frozen=True, kw_only=True):
    """Forget answers older than 7 days and inserts left alone for a day; returns how many rows were removed."""

    limit: Slice = MOST_JOBS


# ---- apps


class AddApp(Write[int], frozen=True, kw_only=True):
    """Define an app; with ``replace`` an app of the same name is redefined. Returns its id."""

    app: App
    replace: bool = False


class GetApps(Read[list[App]], frozen=True, kw_only=True):
    """List the apps by name; ``names`` restricts to these, which must exist."""

    names: list[str] | None = None


class RemoveApp(Write[None], frozen=True, kw_only=True):
    """Remove an app that no job uses."""

    name: str


# ---- adding jobs


Existing = Literal["same", "kept", "updated"]


class Added(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ids of added jobs: ``first_id``, ``first_id + 1``, ..., except where a key existed.

    Attributes:
        first_id: Id of the first new job.
        existing_ids: Index in the call -> id, for jobs whose key existed; the other jobs have consecutive ids.
        existing: Id -> what became of a job that was there before. In a staged insert "updated" is one that is to be
            updated once the insert is published.
    """

    first_id: int
    existing_ids: dict[int, int] = {}
    existing: dict[int, Existing] = {}


UNCHANGED = "nothing was added or changed"
"""What a refusal of :class:`AddJobs` says."""


class AddJobs(Write[Added], frozen=True, kw_only=True):
    """Add jobs: all of them or none.

    A parent is an id, or ``-(index + 1)`` of an earlier job in the same call. With ``staged_insert`` the jobs stay
    invisible until the staged insert is published. ``if_exists`` is for jobs whose key exists: "error" refuses other
    content than the stored, "keep" doesn't look at it, and "update" changes the stored job if it has not started.
    For messages, ``places`` are the jobs' places in what the user gave, from 1, if others than 1, 2, ..., and ``of`` is
    how many those are in all, if that is known.
    """

    jobs: SomeJobs
    staged_insert: int = 0
    if_exists: IfExists = "error"
    places: Annotated[list[int], msgspec.Meta(max_length=MOST_JOBS)] = []
    of: int = 0

    def called(self, index: int) -> str:
        """Return what messages call a job: by its name or key, else by its place in what the user gave."""
        job = self.jobs[index]
        if job.name or not (job.key or self.of != 1):
            return title("job", str(job.name or ""))
        if job.key:
            return f"the job with the key {shortened(job.key)}"
        place = self.places[index] if index < len(self.places) else index + 1
        return f"job {place} of {self.of}" if self.of else f"the given job number {place}"


class OpenStagedInsert(Write[int], frozen=True, kw_only=True):
    """Begin an insert of many calls; returns the staged insert's id."""


class PublishStagedInsert(Write[None], frozen=True, kw_only=True):
    """Make all jobs of a staged insert visible at once."""

    staged_insert: int


class AbandonStagedInsert(Write[int], frozen=True, kw_only=True):
    """Remove a slice of an unpublished staged insert; returns how many jobs were removed, 0 when it is gone."""

    staged_insert: int
    limit: Slice = MOST_JOBS


class PromoteStagedInsert(Write[bool], frozen=True, kw_only=True):
    """Move a slice of published jobs on from CREATED; 0 means any published insert. Returns whether more is left."""

    staged_insert: int = 0
    limit: Slice = MOST_JOBS


class GetDelay(Read[float | None], frozen=True, kw_only=True):
    """Ask in how many seconds the next delayed retry may begin, 0 for now; None where none is delayed."""

    workflow: str = ""
    only: Annotated[list[int], msgspec.Meta(max_length=MOST_JOBS)] | None = None


class PromoteDelayed(Write[bool], frozen=True, kw_only=True):
    """Make a slice of the delayed retries claimable whose time has come. Returns whether more may be left."""

    limit: Slice = MOST_JOBS


class AddEdge(Write[bool], frozen=True, kw_only=True):
    """Make ``child`` wait for ``parent``; refuses cycles. Returns False where it did already."""

    parent: int
    child: int


# ---- looking


class Order(msgspec.Struct, frozen=True):
    """Sort by a field."""

    field: str = "id"
    descending: bool = False


class GetJobs(Read[list[Job]], frozen=True, kw_only=True):
    """Read whole jobs; ``after`` continues behind that id in the order of ids."""

    where: Where = EVERYTHING
    order: Order = Order()
    limit: Limit = MOST_JOBS
    after: int | None = None


class GetRows(Read[list[list[Any]]], frozen=True, kw_only=True):
    """Read some fields of jobs, a list of values for each job."""

    fields: Annotated[list[str], msgspec.Meta(max_length=100)]
    where: Where = EVERYTHING
    order: Order = Order()
    limit: Limit = MOST_JOBS
    after: int | None = None


class CountJobs(Read[int], frozen=True, kw_only=True):
    """Count jobs, up to ``limit`` where there is one."""

    where: Where = EVERYTHING
    limit: Limit | None = None


class CountStates(Read[dict[str, dict[str, int]]], frozen=True, kw_only=True):
    """Count jobs by state (key ``""``), or by workflow and state."""

    where: Where = EVERYTHING
    by_workflow: bool = False


class LastJob(Read[int | None], frozen=True, kw_only=True):
    """Ask for the newest visible job's id."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One write to a job: to its state, or, without transitions, a change of what it is.

    Attributes:
        job_id: The job.
        at: When it was written, by the database's clock.
        transitions: The states that the job went through, each with the seconds before ``at`` when it came to it.
        message: Why.
        attempt: The attempt that it belongs to.
    """

    job_id: int
    at: datetime
    transitions: list[tuple[State, float]]
    message: str = ""
    attempt: int = 0

    @property
    def hops(self) -> list[tuple[State, float]]:
        """The transitions, as the first plugins call them."""
        return self.transitions


class GetHistory(Read[list[Event]], frozen=True, kw_only=True):
    """Read the events of these jobs, oldest first."""

    jobs: Annotated[list[int], msgspec.Meta(max_length=MOST_JOBS)]


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An ended attempt at a job: a claim with which a launcher began something.

    Attributes:
        job_id: The job.
        attempt: Its number.
        launcher_id: The launcher.
        host: Where it ran.
        started_at: When it began, by the database's clock.
        elapsed: Duration of the run in seconds; None where it ended before the run.
        cpu_seconds: Processor time of the run, user and system, in seconds; None for unknown.
        max_memory: The most memory that the run used, in bytes; None for unknown.
        return_code: The run's exit code, negative for a signal.
        outcome: The state in which it ended; the history says why.
    """

    job_id: int
    attempt: int
    launcher_id: int
    host: str
    started_at: datetime
    elapsed: float | None = None
    cpu_seconds: float | None = None
    max_memory: int | None = None
    return_code: int | None = None
    outcome: str


class GetAttempts(Read[list[Attempt]], frozen=True, kw_only=True):
    """Read the ended attempts of these jobs, by job and number."""

    jobs: Annotated[list[int], msgspec.Meta(max_length=MOST_JOBS)]


class Edge(msgspec.Struct, frozen=True, array_like=True):
    """A dependency."""

    parent: int
    child: int


class GetEdges(Read[list[Edge]], frozen=True, kw_only=True):
    """Read the dependencies in which these jobs are children (or, with ``children_of``, parents)."""

    jobs: Annotated[list[int], msgspec.Meta(max_length=MOST_JOBS)]
    children_of: bool = False


class JobState(msgspec.Struct, frozen=True, array_like=True):
    """A job and where it stands."""

    id: int
    state: State


class Blockers(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What keeps a job from running, as far as jobs do: for one that has failed or was killed, what ended it.

    Attributes:
        claimable: Whether a launcher may take the job now.
        staged: Whether it is part of a staged insert that is published, but not promoted yet.
        parents: The first parents that have not finished, or, for an ended job, that have ended badly.
        parent_count: How many there are.
        causes: The first ancestors of this kind that wait for no other one: all the rest follows from them.
        cause_count: How many there are.
    """

    claimable: bool
    staged: bool = False
    parents: list[JobState] = []
    parent_count: int = 0
    causes: list[JobState] = []
    cause_count: int = 0


class GetBlockers(Read[Blockers], frozen=True, kw_only=True):
    """Ask which jobs keep a job from running; ``limit`` bounds the lists, not the counts."""

    job: int
    limit: Limit = 5


class GetRootFailures(Read[dict[int, int]], frozen=True, kw_only=True):
    """Ask which FAILED jobs did not fail because of a parent, and how many jobs failed because of each.

    A job with several failed parents counts once, as failed because of the parent with the lowest id.
    """

    where: Where = EVERYTHING


# ---- changing jobs


class Changed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a change of many jobs did.

    Attributes:
        ids: Jobs that changed (relatives that follow them are not named).
        more: Whether a further slice may change more.
        held: How many chosen jobs can't be retried before a launcher says that their processes have ended. This and
            the next two are known after the last slice.
        blocked: How many chosen jobs can't be retried before their parents, which were not chosen.
        why: What keeps one of those from being retried.
        last_root: Where the next slice of a retry goes on; -1 for no more jobs than those of ``rest``.
        rest: Jobs whose descendants are the next slice.
    """

    ids: list[int]
    more: bool = False
    held: int = 0
    blocked: int = 0
    why: str = ""
    last_root: int = 0
    rest: list[int] = []


class KillJobs(Write[Changed], frozen=True, kw_only=True):
    """Kill a slice of unended jobs; their waiting descendants become PARENT_KILLED."""

    where: Where
    message: str = ""
    limit: Slice = MOST_JOBS


class RetryJobs(Write[Changed], frozen=True, kw_only=True):
    """Start a slice of failed or killed jobs again, and descendants that ended only because of them.

    Each call but the first of a change has ``last_root`` and ``rest`` as the one before gave them.
    """

    where: Where
    limit: Slice = MOST_JOBS
    last_root: int = 0
    rest: list[int] = []


class RemovedJob(msgspec.Struct, frozen=True, array_like=True):
    """A removed job, as far as its working directory's name needs it."""

    id: int
    workflow: str
    name: str


class CheckRemoval(Read[list[Edge]], frozen=True, kw_only=True):
    """Look for what forbids the removal of jobs; Conflict where a launcher holds one.

    Returns dependencies of one of the jobs on which other jobs that have not finished rely; none with ``cascade``,
    which removes those, too.
    """

    where: Where
    cascade: bool = False


class RemoveJobs(Write[list[RemovedJob]], frozen=True, kw_only=True):
    """Remove a slice of jobs that no launcher holds and no other unended job waits for."""

    where: Where
    limit: Slice = 500


# ---- launchers


class RegisterLauncher(Write[int], frozen=True, kw_only=True):
    """Announce a launcher; returns its id.

    ``boot_id`` and ``process_start`` are as :mod:`balsam_core.system.processes` tells them.
    """

    host: str
    pid: int
    boot_id: str
    process_start: float
    lease_seconds: Seconds
    workflow: str = ""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to a launcher that renews its lease.

    Attributes:
        killed: Jobs that it holds and the user killed.
    """

    killed: list[int] = []


class RenewLease(Write[Heartbeat], frozen=True, kw_only=True):
    """Extend a launcher's lease; Conflict where the launcher was given up."""

    launcher: int
    lease_seconds: Seconds


class GetKilledJobs(Read[list[int]], frozen=True, kw_only=True):
    """Ask which of a launcher's jobs the user killed."""

    launcher: int


class CloseLauncher(Write[bool], frozen=True, kw_only=True):
    """End a launcher: jobs that it still holds become claimable again; returns False where it had ended before.

    ``why`` is for the histories of running jobs. With ``seen_at``, nothing happens where its last sign of life is not
    that one: it has renewed its lease.
    """

    launcher: int
    why: str = ""
    seen_at: datetime | None = None


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What a launcher can give one job.

    Attributes:
        nodes: Nodes.
        ranks_per_node: Processes on one node.
        gpus_per_node: GPUs on one node.
        minutes_left: Time until the launcher ends; None for no limit.
    """

    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: float = 0
    minutes_left: float | None = None


class ParentRef(msgspec.Struct, frozen=True, array_like=True):
    """A parent, as far as a child's dataflow needs it."""

    id: int
    workflow: str
    name: str
    user_workdir: str


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Jobs that now belong to the launcher, with all it needs to run them.

    Attributes:
        jobs: The jobs; ``parents`` holds their parents' ids.
        apps: The apps that they name.
        parents: The parents.
    """

    jobs: list[Job]
    apps: dict[str, App] = {}
    parents: dict[int, ParentRef] = {}


class ClaimJobs(Write[Claim], frozen=True, kw_only=True):
    """Take jobs that fit; no job is ever given to two launchers.

    The highest priority goes first; among equals the resource class with the oldest job, and its oldest jobs, go first.

    Attributes:
        launcher: Who takes them.
        limit: Most jobs; fewer where they need several processors each, since it is the number of free ones, too.
        resources: What they must fit.
        workflow: Only jobs of this workflow; empty for all.
        only: Only these jobs; None for all.
        free_gpus: So many GPUs are free: no more jobs are taken than can share these, but at least one; None for no
            such limit.
        packed: Whether jobs with a packing count may be taken.
    """

    launcher: int
    limit: Slice
    resources: Resources
    workflow: str = ""
    only: Annotated[list[int], msgspec.Meta(max_length=MOST_JOBS)] | None = None
    free_gpus: float | None = None
    packed: bool = True


class Run(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What an attempt at a job took.

    Attributes:
        started: Seconds since the launcher began with it; None for since the job's last change on record.
        elapsed: Duration of the run in seconds; None where it ended before the run.
        cpu_seconds: Processor time of the run, user and system; None for unknown.
        max_memory: The most memory that the run used, in bytes; None for unknown.
    """

    started: Seconds | None = None
    elapsed: Seconds | None = None
    cpu_seconds: Seconds | None = None
    max_memory: int | None = None


class Update(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happened to one job that a launcher holds.

    Attributes:
        job: Its id.
        attempt: The attempt that this belongs to; an older one is refused.
        transitions: The states it went through, each with its age in seconds; a wrong path is refused.
        message: Why, for the history.
        return_code: Exit code of the run, where it ran.
        release: Whether the launcher gives the job back unfinished.
        delay: How many seconds a job that goes to RESTART_READY may not be claimed.
        run: What the attempt took, with its last update; None where nothing was begun.
        remarks: Messages for the histories of other jobs, by id.
    """

    job: int
    attempt: int
    transitions: list[tuple[State, Seconds]] = []
    message: str = ""
    return_code: int | None = None
    release: bool = False
    delay: Seconds = 0.0
    run: Run | None = None
    remarks: dict[int, str] = {}


class UpdateJobs(Write[dict[int, str]], frozen=True, kw_only=True):
    """Record what happened to a launcher's jobs; jobs that end free their children.

    Updates are independent: the answer maps the jobs whose update was refused to the reason. ``host`` is where the jobs
    ran.
    """

    launcher: int
    host: str = ""
    updates: Annotated[list[Update], msgspec.Meta(max_length=MOST_JOBS)]


class Unfit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Claimable jobs of one shape that need more than a launcher has.

    Attributes:
        jobs: How many.
        first: Their lowest id.
        last: Their highest id.
        nodes: Nodes that each needs.
        ranks_per_node: Its processes on one node.
        gpus_per_node: Its GPUs on one node.
        minutes: How long it may take; 0 for unknown.
    """

    jobs: int
    first: int
    last: int
    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: float = 0
    minutes: int = 0


class GetUnfit(Read[list[Unfit]], frozen=True, kw_only=True):
    """Tell which claimable jobs don't fit a launcher's resources, by shape, the first jobs first.

    ``limit`` is how many jobs are looked at, ``only`` which ones; None for all.
    """

    resources: Resources
    workflow: str = ""
    only: Annotated[list[int], msgspec.Meta(max_length=MOST_JOBS)] | None = None
    limit: Limit = MOST_JOBS


class HasClaimable(Read[bool], frozen=True, kw_only=True):
    """Tell whether there are jobs for :class:`ClaimJobs` with the same arguments."""

    launcher: int
    resources: Resources
    workflow: str = ""
    only: Annotated[list[int], msgspec.Meta(max_length=MOST_JOBS)] | None = None
    packed: bool = True


class LauncherInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A launcher that has not ended.

    Attributes:
        id: Its id.
        host: Where it runs.
        pid: Its process id there.
        boot_id: The boot of that machine, and the namespace of process ids.
        process_start: When that process started.
        workflow: The workflow whose jobs it runs; empty for all.
        started_at: When it was registered.
        seen_at: Its last sign of life.
        silent_seconds: How long that is ago, by the database's clock.
        lease_seconds: How long its lease is, from that on.
        alive: Whether its lease is not over, by the database's clock.
        jobs: How many jobs it holds.
        lease_until: When its lease is over, unless it renews it.
    """

    id: int
    host: str
    pid: int
    boot_id: str
    process_start: float
    workflow: str
    started_at: datetime
    seen_at: datetime
    silent_seconds: float
    lease_seconds: float
    alive: bool
    jobs: int
    lease_until: datetime | None = None


class GetLaunchers(Read[list[LauncherInfo]], frozen=True, kw_only=True):
    """List launchers that have not ended, with the number of jobs that each holds."""


class CountHeldByOthers(Read[int], frozen=True, kw_only=True):
    """Count jobs that other launchers hold and that matter to an idle one (up to ``limit``).

    Those are the jobs that it would run itself, of ``workflow`` and of ``only``; and all, where one that it would run
    waits for a parent. 0 means that no job will become claimable for it by itself, so that it can end.
    """

    launcher: int
    workflow: str = ""
    only: Annotated[list[int], msgspec.Meta(max_length=MOST_JOBS)] | None = None
    limit: Limit = 1
