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
    """

    jobs: SomeJobs
    staged_insert: int = 0
    if_exists: IfExists = "error"


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
    """Count jobs."""

    where: Where = EVERYTHING


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


class Edge(msgspec.Struct, frozen=True, array_like=True):
    """A dependency."""

    parent: int
    child: int


class GetEdges(Read[list[Edge]], frozen=True, kw_only=True):
    """Read the dependencies in which these jobs are children (or, with ``children_of``, parents)."""

    jobs: Annotated[list[int], msgspec.Meta(max_length=MOST_JOBS)]
    children_of: bool = False


# ---- changing jobs


class Changed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a change of many jobs did.

    Attributes:
        ids: Jobs that changed (relatives that follow them are not named).
        more: Whether a further slice may change more.
        held: How many chosen jobs can't be retried before a launcher says that their processes have ended.
        last_root: Where the next slice of a retry goes on; -1 for no more jobs than those of ``rest``.
        rest: Jobs whose descendants are the next slice.
    """

    ids: list[int]
    more: bool = False
    held: int = 0
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
    """

    launcher: int
    limit: Slice
    resources: Resources
    workflow: str = ""
    only: Annotated[list[int], msgspec.Meta(max_length=MOST_JOBS)] | None = None


class Update(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happened to one job that a launcher holds.

    Attributes:
        job: Its id.
        attempt: The attempt that this belongs to; an older one is refused.
        transitions: The states it went through, each with its age in seconds; a wrong path is refused.
        message: Why, for the history.
        return_code: Exit code of the run, where it ran.
        release: Whether the launcher gives the job back unfinished.
    """

    job: int
    attempt: int
    transitions: list[tuple[State, Seconds]] = []
    message: str = ""
    return_code: int | None = None
    release: bool = False


class UpdateJobs(Write[dict[int, str]], frozen=True, kw_only=True):
    """Record what happened to a launcher's jobs; jobs that end free their children.

    Updates are independent: the answer maps the jobs whose update was refused to the reason.
    """

    launcher: int
    updates: Annotated[list[Update], msgspec.Meta(max_length=MOST_JOBS)]


Waiting = Literal["fits", "does not fit"]


class CountWaiting(Read[dict[Waiting, int]], frozen=True, kw_only=True):
    """Count claimable jobs by whether they fit a launcher's resources, each up to ``limit``."""

    resources: Resources
    workflow: str = ""
    limit: Limit = MOST_JOBS


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


class GetLaunchers(Read[list[LauncherInfo]], frozen=True, kw_only=True):
    """List launchers that have not ended, with the number of jobs that each holds."""


class CountHeldByOthers(Read[int], frozen=True, kw_only=True):
    """Count jobs that other launchers hold (up to ``limit``); 0 also where no job waits for a parent.

    0 means that no job will become claimable by itself, so that an idle launcher can end.
    """

    launcher: int
    workflow: str = ""
    limit: Limit = 1
