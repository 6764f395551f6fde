"""The options that describe a job, shared by ``balsam job`` and ``balsam run``.

A new stored field of :class:`~balsam_core.model.job.Job` needs one entry in ``_OPTIONS``, whose value is passed to
``Job`` under the option's name. ``show`` and ``ls -F`` take their fields from ``Job``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from balsam_core.cli.values import (
    AT_LEAST_0,
    AT_LEAST_1,
    DURATION,
    LARGEST,
    SHARE,
    converted,
    full_path,
    json_object,
    mapping,
    parameters,
    patterns,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from balsam_core.cli.command import Session
    from balsam_core.client.database import Database
    from balsam_core.model.calls import IfExists
    from balsam_core.model.job import Job

F = TypeVar("F", bound="Callable[..., Any]")


_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--name",), {"help": "Name, also of the working directory; need not be unique."}),
    (("--workflow", "--wf"), {"metavar": "NAME", "help": "The workflow that it belongs to.  [default: default]"}),
    (("--description",), {"help": "Free text."}),
    (("--param", "-p", "parameters"), {
        "multiple": True, "metavar": "KEY=VALUE", "callback": converted(parameters),
        "help": "Value for a {KEY} of the command, which gets it as typed. May be repeated.",
    }),
    (("--parent", "parents"), {
        "multiple": True, "metavar": "SELECTOR",
        "help": "Jobs that must finish first: 12, 12-20, last, wf:NAME, - for ids from stdin. May be repeated.",
    }),
    (("--wait-for-parents/--no-wait-for-parents",), {
        "help": "Whether to wait for the parents or only to take their files.",
    }),
    (("--input-files",), {
        "multiple": True, "metavar": "PATTERNS", "callback": converted(patterns),
        "help": "Names or patterns of the parents' files that come into the working directory, e.g. '*.xyz out.*'.",
    }),
    (("--input-mode",), {
        "type": click.Choice(["link", "copy"]),
        "help": "Whether these are links, through which the job could change its parents' files, or copies.  "
        "[default: link]",
    }),
    (("--stage-in",), {
        "metavar": "PATH", "callback": converted(full_path),
        "help": "Copy this directory or file into the working directory first. A relative path is one from here.",
    }),
    (("--stage-out",), {
        "metavar": "PATH", "callback": converted(full_path), "help": "Copy results to this directory at the end.",
    }),
    (("--stage-out-files",), {
        "multiple": True, "metavar": "PATTERNS", "callback": converted(patterns), "help": "Which files to copy there.",
    }),
    (("--user-workdir",), {
        "metavar": "PATH", "callback": converted(full_path),
        "help": "Run in this directory instead of in a working directory of its own.",
    }),
    (("--env", "environ"), {
        "multiple": True, "metavar": "KEY=VALUE", "callback": converted(mapping),
        "help": "Environment variable. May be repeated.",
    }),
    (("--preprocess",), {"metavar": "COMMAND", "help": "Command to run before the job, instead of the app's."}),
    (("--postprocess",), {"metavar": "COMMAND", "help": "Command to run after the job, instead of the app's."}),
    (("--post-error-handler",), {"is_flag": True, "help": "Run the postprocess command after an error, too."}),
    (("--post-timeout-handler",), {"is_flag": True, "help": "Run the postprocess command after a timeout, too."}),
    (("--auto-timeout-retry/--no-auto-timeout-retry",), {
        "help": "Whether a job that the launcher's time limit stopped runs again.",
    }),
    (("--max-retries",), {"type": AT_LEAST_0, "help": "How often a failed job runs again by itself."}),
    (("--retry-delay-seconds",), {
        "type": DURATION, "metavar": "S", "help": "Pause before the first of these retries; doubles with each.",
    }),
    (("--priority",), {"type": click.IntRange(-LARGEST, LARGEST), "metavar": "NUMBER", "help": "Higher runs first."}),
    (("--wall-time-minutes",), {"type": AT_LEAST_0, "help": "Expected duration; 0 for unknown."}),
    (("--time-limit-minutes",), {
        "type": DURATION, "metavar": "M",
        "help": "End the run, or a hook, after M minutes, e.g. 90 or 0.5; 0 for no limit.",
    }),
    (("--num-nodes",), {"type": AT_LEAST_1, "help": "Nodes."}),
    (("--ranks-per-node",), {"type": AT_LEAST_1, "help": "Processes per node."}),
    (("--threads-per-rank",), {"type": AT_LEAST_1, "help": "Threads per process."}),
    (("--threads-per-core",), {"type": AT_LEAST_1, "help": "Threads per core."}),
    (("--gpus-per-rank",), {"type": SHARE, "help": "GPUs per process; may be a fraction."}),
    (("--node-packing-count",), {"type": AT_LEAST_1, "help": "How many such jobs share one node."}),
    (("--cpu-affinity",), {"help": "Binding of processes to cores."}),
    (("--key",), {"help": "Unique key: if the same job exists under it, none is added and its id is printed."}),
    (("--if-exists",), {
        "type": click.Choice(["error", "keep", "update"]),
        "help": "What to do where another job exists under the key. error: refuse; keep: leave it as it is; update: "
        "give it this content, if it has not started.  [default: error]",
    }),
    (("--data",), {"metavar": "JSON", "callback": converted(json_object), "help": "A JSON object of your own."}),
)  # fmt: skip


def job_options(function: F) -> F:
    """Give a command the options that describe a job; :func:`add_job` takes their values."""
    for names, settings in reversed(_OPTIONS):
        function = click.option(*names, default=None, **settings)(function)
    return function


def add_job(session: Session, options: dict[str, Any]) -> int | None:
    """Add the job that the options describe and print it; return its id, None where it was there before.

    The options are values by the names of the job's fields; None is the field's default. Parents are selectors.

    Raises:
        click.UsageError: An option is given without the one that it needs.
    """
    from balsam_core.cli.records import job_record
    from balsam_core.cli.selectors import choose, parse
    from balsam_core.model.job import Job

    printer = session.printer()
    if_exists: IfExists = options.pop("if_exists") or "error"
    if if_exists != "error" and options["key"] is None:
        raise click.UsageError("--if-exists is about jobs with the same key: give one by --key")
    if bool(options["stage_out"]) != bool(options["stage_out_files"]):
        raise click.UsageError("--stage-out and --stage-out-files go together: one alone copies nothing")
    with session.open_db() as db:
        parents = choose(db, parse(options["parents"])).ids()
        fields = {name: value for name, value in options.items() if value is not None} | {"parents": parents}
        job = Job(**fields)
        commands = {name: options.get(name) for name in ("command", "args", "preprocess", "postprocess")}
        warn_of_operators(commands, filled=job.parameters)
        added = db.jobs.add(job, if_exists=if_exists)
        record = {"id": added[0]} if printer.format in {"table", "ids"} else job_record(_stored(db, job))
    outcome = added.existing.get(added[0], "added")
    done = _OUTCOMES[outcome].format(added[0])
    printer.one(record | {"outcome": outcome}, str(added[0]), done=done.rstrip("."))
    if outcome == "added":
        return added[0]
    printer.note(done)
    return None


_OUTCOMES = {
    "added": "Job {} is added.",
    "same": "Job {} exists already with this key and the same content; nothing was added.",
    "kept": "Job {} exists already with this key; it was kept as it is, and nothing was added.",
    "updated": "Job {} existed already with this key; its content was changed.",
}


def warn_of_operators(commands: Mapping[str, str | None], *, filled: Container[str] | None) -> None:
    """Tell on stderr of what only a shell understands in command lines, by the names of their options.

    ``filled`` names the parameters that are filled in; None for whatever stands in braces.
    """
    from balsam_core.model.command import shell_operator

    for option, text in commands.items():
        if text and (operator := shell_operator(text, filled)):
            what = operator if operator.startswith("a ") else repr(operator)
            click.echo(
                f"Warning: no shell sees --{option}, so {what} is passed to the program: if a shell is meant, use "
                f"sh -c '...', else put it in single quotes",
                err=True,
            )


def _stored(db: Database, job: Job) -> Job:
    """Return an added job with what the database gave it; as it was given, where that can't be read now."""
    from balsam_core.errors import BalsamError

    try:
        return db.jobs.get(job.id or 0)
    except BalsamError as err:
        click.echo(f"Warning: job {job.id} is added, but its record can't be read: {err.message}", err=True)
        return job
