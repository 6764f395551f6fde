"""The job: what a user asks for and what the database adds to it."""

from __future__ import annotations

from datetime import datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec.structs import astuple, fields

from balsam_core.errors import InvalidInput
from balsam_core.model.cores import check_affinity
from balsam_core.model.fields import Field, default
from balsam_core.model.filters import Column
from balsam_core.model.states import State
from balsam_core.model.text import (
    check_document,
    check_environ,
    check_path,
    check_patterns,
    check_text,
    shortened,
    title,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from msgspec.structs import FieldInfo

    Parents = Field[Sequence["Job | int"]]
else:
    Parents = list[int]

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Priority = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Duration = Annotated[float, msgspec.Meta(ge=0, le=1e8)]
InputMode = Literal["link", "copy"]

LONGEST_NAME = 10_000  # characters; the working directory's name is cut to 200 bytes
LONGEST_WORKFLOW = 255  # characters; indexed on every database
LONGEST_KEY = 255


class Job(msgspec.Struct, kw_only=True, omit_defaults=True, eq=False, forbid_unknown_fields=True):
    """One unit of work: a process (or an MPI run) with its own working directory.

    A job runs either an ``app`` (a command template that ``parameters`` fill) or its own ``command``. On the class
    each field is a column to build conditions with: ``db.jobs.where(Job.state == "FAILED", Job.priority > 3)``.

    Attributes:
        name: Part of the working directory's name; need not be unique.
        workflow: The workflow that the job belongs to; its jobs' directories lie together.
        description: Free text.
        app: Name of the app to run; excludes ``command``.
        args: More words for the command line, split like a shell line, then filled from ``parameters``.
        command: A command line of the job's own, split like a shell line; ``{name}`` is a placeholder where ``name`` is
            among ``parameters``.
        parameters: Values for the placeholders; any JSON object. Text is filled in as it is, all else as JSON. See
            below for other Python values.
        parents: Jobs that must finish first: :class:`Job` objects or ids.
        wait_for_parents: Whether the job waits for its parents or only takes their files.
        input_files: Names or shell patterns; matching files of the parents come into the working directory. A name that
            no parent has fails the job before it starts.
        input_mode: How they come: "link" (a symbolic link, through which the job could change its parent's file) or
            "copy" (a copy of its own, on file systems that can do it without using space).
        stage_in: A local directory or file that is copied into the working directory before the job; an absolute path,
            or one that begins with ``~``, as all paths here.
        stage_out: A local directory that ``stage_out_files`` are copied to after the job.
        stage_out_files: Shell patterns for ``stage_out``.
        user_workdir: A directory to run in instead of one of the job's own.
        environ: Environment variables, over those of the app.
        preprocess: Command that runs before the job instead of the app's; empty for the app's.
        postprocess: Command that runs after the job instead of the app's; empty for the app's.
        post_error_handler: Whether ``postprocess`` also runs after an error, with ``BALSAM_JOB_ERROR=TRUE``.
        post_timeout_handler: Whether ``postprocess`` also runs after a timeout, with ``BALSAM_JOB_TIMEOUT=TRUE``.
        auto_timeout_retry: Whether a job that its launcher's time limit stopped runs again.
        max_retries: How often a job that failed runs again by itself.
        retry_delay_seconds: Pause before the first of these retries, in seconds; it doubles with each, up to a day.
        priority: Higher runs first.
        wall_time_minutes: Expected duration in minutes; 0 for unknown. A launcher does not start what can't end.
        time_limit_minutes: After so many minutes the run is ended, as a timeout without an automatic retry, and each
            hook and copy, as an error; may be a fraction, 0 for no limit.
        num_nodes: Nodes.
        ranks_per_node: Processes per node.
        threads_per_rank: Threads per process.
        threads_per_core: Threads per core.
        gpus_per_rank: GPUs per process; may be a fraction.
        node_packing_count: Most jobs of its kind that run on one node at the same time; 0 for as many as fit.
        cpu_affinity: The processors that its processes are bound to: ``depth`` for as many of its own as each has
            threads, a list such as ``0,2,8-11`` for all together; ``none`` or empty for no binding.
        key: Unique over the database; a job whose key exists is not added again.
        data: Any JSON object of the user's own, stored like ``parameters``.
        id: The job's id, given by the database.
        state: Where it stands.
        state_since: When it came there.
        created_at: When it was added.
        attempt: How often a launcher took it; a stale launcher's updates carry an old number and are refused.
        retries: Automatic retries used so far.
        return_code: The last run's exit code, negative for a signal.
        launcher_id: The launcher that holds it now.
        not_before: When a delayed retry may begin; None where nothing is delayed.
        launchers_lost: How many launchers in a row were lost while they ran it; the third one fails the job.
        host: Where the attempt ``attempt`` ran. This and the next are None until that attempt has ended.
        started_at: When it began, by the database's clock.
        elapsed: Duration of its run in seconds; None where it ended before the run.
        cpu_seconds: Processor time of its run, user and system, in seconds; None for unknown.
        max_memory: The most memory that one process of its run used, in bytes; None for unknown.

    Values in ``parameters`` and ``data`` come back as JSON has them. A tuple is stored as a list, an Enum as its value;
    a Decimal, a UUID, a date, a timedelta and a datetime without a time zone are stored as text. All else is refused
    when the job is added, and the message names the job and the field: a set (it has no order; give a list), bytes, a
    Path, a complex number, a datetime with a time zone (give ``.isoformat()``), NaN and infinity, an integer of more
    than 64 bits such as ``2**70``, and values and arrays of NumPy (give ``.tolist()``).
    """

    name: Field[str] = default("")
    workflow: Field[str] = default("default")
    description: Field[str] = default("")
    app: Field[str] = default("")
    args: Field[str] = default("")
    command: Field[str] = default("")
    parameters: Field[dict[str, Any]] = default({})
    parents: Parents = default([])
    wait_for_parents: Field[bool] = default(True)
    input_files: Field[list[str]] = default([])
    input_mode: Field[InputMode] = default("link")
    stage_in: Field[str] = default("")
    stage_out: Field[str] = default("")
    stage_out_files: Field[list[str]] = default([])
    user_workdir: Field[str] = default("")
    environ: Field[dict[str, str]] = default({})
    preprocess: Field[str] = default("")
    postprocess: Field[str] = default("")
    post_error_handler: Field[bool] = default(False)
    post_timeout_handler: Field[bool] = default(False)
    auto_timeout_retry: Field[bool] = default(True)
    max_retries: Field[Size] = default(0)
    retry_delay_seconds: Field[Duration] = default(0.0)
    priority: Field[Priority] = default(0)
    wall_time_minutes: Field[Size] = default(0)
    time_limit_minutes: Field[Duration] = default(0.0)
    num_nodes: Field[Count] = default(1)
    ranks_per_node: Field[Count] = default(1)
    threads_per_rank: Field[Count] = default(1)
    threads_per_core: Field[Count] = default(1)
    gpus_per_rank: Field[Share] = default(0.0)
    node_packing_count: Field[Size] = default(0)
    cpu_affinity: Field[str] = default("")
    key: Field[str | None] = default(None)
    data: Field[dict[str, Any]] = default({})

    # GIVEN_BY_DATABASE
    id: Field[int | None] = default(None)
    state: Field[State] = default(State.CREATED)
    state_since: Field[datetime | None] = default(None)
    created_at: Field[datetime | None] = default(None)
    attempt: Field[int] = default(0)
    retries: Field[int] = default(0)
    return_code: Field[int | None] = default(None)
    launcher_id: Field[int | None] = default(None)
    not_before: Field[datetime | None] = default(None)
    launchers_lost: Field[int] = default(0)
    host: Field[str | None] = default(None)
    started_at: Field[datetime | None] = default(None)
    elapsed: Field[float | None] = default(None)
    cpu_seconds: Field[float | None] = default(None)
    max_memory: Field[int | None] = default(None)

    def values(self) -> dict[str, Any]:
        """Return the values of all fields by name: ten times as fast as asking for each."""
        return dict(zip(FIELDS, astuple(self), strict=True))

    def check(self, called: str = "") -> None:
        """Raise InvalidInput, with the job and the field, where a value can't be stored or can never work.

        ``called`` is what the message calls the job, instead of by its name.
        """
        called = called or title("job", str(self.name or ""))
        for info in field_infos():
            if info.name != "parents":  # an operation checks them
                _check_type(self, info, called)
        check_columns({name: (value,) for name, value in self.values().items()}, lambda _: called)

    def __repr__(self) -> str:
        job_id = "new" if self.id is None else self.id
        return f"<Job {job_id} {self.workflow}/{self.name} {self.state}>"


OF_ATTEMPT = ("host", "started_at", "elapsed", "cpu_seconds", "max_memory")
"""Fields that come from the record of the job's last attempt."""

GIVEN_BY_DATABASE = frozenset(
    {
        "id", "state", "state_since", "created_at", "attempt", "retries", "return_code", "launcher_id", "not_before",
        "launchers_lost", *OF_ATTEMPT,
    }
)  # fmt: skip
"""Fields whose values in a new job don't count."""


@cache
def field_infos() -> tuple[FieldInfo, ...]:
    """Return type and default of each field. Takes 1 ms, so it is not done at import."""
    return fields(Job)


def _check_type(job: Job, info: FieldInfo, called: str) -> None:
    """Raise InvalidInput where a field holds what its type does not allow; the message begins with ``called``."""
    value = getattr(job, info.name)
    try:
        if info.name == "environ" and type(value) is dict:
            check_environ(info.name, value)  # says more
        elif type(value) in {str, dict, list, set, frozenset}:
            check_document(info.name, value)
        msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=info.type)
    except (TypeError, ValueError, OverflowError, RecursionError, InvalidInput) as err:
        wrong = f"{info.name} can't be {shortened(value)} ({str(err).rstrip('.')})"
        raise InvalidInput(f"{called}: {err if isinstance(err, InvalidInput) else wrong}") from None


def check_columns(columns: Mapping[str, Sequence[Any]], called: Callable[[int], str]) -> None:
    """Raise InvalidInput for a value of jobs, given by field, that can never work; the message names its job.

    Whole columns are checked, since jobs of an ensemble share most of their values: each different text is looked at
    once.

    Args:
        columns: The values of each field.
        called: Returns what a message calls a job, of its index.
    """
    kinds = list(zip(columns["app"], columns["command"], strict=True))
    for kind in set(kinds):
        if bool(kind[0]) == bool(kind[1]):
            job = called(kinds.index(kind))
            raise InvalidInput(f"{job}: give either an app or a command" + (", not both" if kind[0] else ""))
    for field, check in _checks().items():
        values = columns[field]
        for value in filter(None, values) if check in _OF_DOCUMENTS else set(values):
            try:
                check(field, value)
            except InvalidInput as err:
                raise InvalidInput(f"{called(values.index(value))}: {err}") from None


@cache
def _checks() -> dict[str, Callable[[str, Any], object]]:
    """Return what checks the values of each field that a user gives as text or document."""
    by_name: dict[str, Callable[[str, Any], object]] = {
        "name": partial(check_text, longest=LONGEST_NAME),
        "workflow": partial(check_text, longest=LONGEST_WORKFLOW, empty=False),
        "key": _check_key,
        "command": _check_command,
        "args": _check_words,
        "preprocess": _check_words,
        "postprocess": _check_words,
        "stage_in": check_path,
        "stage_out": check_path,
        "user_workdir": check_path,
        "environ": check_environ,
        "input_mode": _check_input_mode,
        "cpu_affinity": check_affinity,
    }
    by_type: dict[Any, Callable[[str, Any], object]] = {str: check_text, dict: check_document, list: check_patterns}
    for info in field_infos():
        kind = get_origin(info.type) or info.type
        if kind in by_type and info.name != "parents":  # Job objects or ids; an operation checks them
            by_name.setdefault(info.name, by_type[kind])
    return by_name


_OF_DOCUMENTS = {check_document, check_patterns, check_environ}


def _check_key(field: str, key: str | None) -> None:
    if key is not None:
        check_text(field, key, longest=LONGEST_KEY, empty=False)


def _check_input_mode(field: str, mode: str) -> None:
    if mode not in get_args(InputMode):
        raise InvalidInput(f"{field} can't be {mode!r}: give 'link' or 'copy'")


def _check_command(field: str, command: str) -> None:
    if not _check_words(field, command) and command:
        raise InvalidInput(f"the {field} is blank")


def _check_words(field: str, text: str) -> list[str]:
    from balsam_core.model.command import split

    check_text(field, text)
    return split(text, what=field)


FIELDS: tuple[str, ...] = Job.__struct_fields__
"""The names of all fields of a job."""

for _name in FIELDS:
    setattr(Job, _name, Column(_name, Job.__dict__[_name]))
