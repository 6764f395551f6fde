"""The options that describe a job, shared by ``balsam job`` and ``balsam run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from balsam_core.cli.selectors import choose, parse
from balsam_core.cli.values import (
    AT_LEAST_0,
    AT_LEAST_1,
    JSON_OBJECT,
    LARGEST,
    PAIR,
    SHARE,
    mapping,
    parameters,
    patterns,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.client.database import Database
    from balsam_core.model.job import Job

__all__ = ["add", "job_options"]

F = TypeVar("F", bound="Callable[..., Any]")

_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--name",), {"help": "Name, also of the working directory; need not be unique."}),
    (("--workflow", "--wf"), {"metavar": "NAME", "help": "The workflow that it belongs to.  [default: default]"}),
    (("--description",), {"help": "Free text."}),
    (("--param", "-p"), {
        "type": PAIR, "multiple": True, "metavar": "KEY=VALUE",
        "help": "Value for a {KEY} of the command; JSON where it is JSON, else text. May be repeated.",
    }),
    (("--parent",), {
        "multiple": True, "metavar": "SELECTOR",
        "help": "Jobs that must finish first: 12, 12-20, last, wf:NAME, - for ids from stdin. May be repeated.",
    }),
    (("--wait-for-parents/--no-wait-for-parents",), {
        "default": None, "help": "Whether to wait for the parents or only to take their files.",
    }),
    (("--input-files",), {
        "multiple": True, "metavar": "PATTERNS",
        "help": "Patterns of the parents' files to link into the working directory, e.g. '*.xyz out.*'.",
    }),
    (("--stage-in",), {"metavar": "PATH", "help": "Copy this directory or file into the working directory first."}),
    (("--stage-out",), {"metavar": "PATH", "help": "Copy results to this directory at the end."}),
    (("--stage-out-files",), {"multiple": True, "metavar": "PATTERNS", "help": "Which files to copy there."}),
    (("--user-workdir",), {"metavar": "PATH", "help": "Run here instead of in a working directory of its own."}),
    (("--env",), {
        "type": PAIR, "multiple": True, "metavar": "KEY=VALUE", "help": "Environment variable. May be repeated.",
    }),
    (("--preprocess",), {"metavar": "COMMAND", "help": "Command to run before the job, instead of the app's."}),
    (("--postprocess",), {"metavar": "COMMAND", "help": "Command to run after the job, instead of the app's."}),
    (("--post-error-handler",), {"is_flag": True, "help": "Run the postprocess command after an error, too."}),
    (("--post-timeout-handler",), {"is_flag": True, "help": "Run the postprocess command after a timeout, too."}),
    (("--auto-timeout-retry/--no-auto-timeout-retry",), {
        "default": None, "help": "Whether a job that the launcher's time limit stopped runs again.",
    }),
    (("--max-retries",), {"type": AT_LEAST_0, "help": "How often a failed job runs again by itself."}),
    (("--priority",), {"type": click.IntRange(-LARGEST, LARGEST), "metavar": "NUMBER", "help": "Higher runs first."}),
    (("--wall-time-minutes",), {"type": AT_LEAST_0, "help": "Expected duration; 0 for unknown."}),
    (("--num-nodes",), {"type": AT_LEAST_1, "help": "Nodes."}),
    (("--ranks-per-node",), {"type": AT_LEAST_1, "help": "Processes per node."}),
    (("--threads-per-rank",), {"type": AT_LEAST_1, "help": "Threads per process."}),
    (("--threads-per-core",), {"type": AT_LEAST_1, "help": "Threads per core."}),
    (("--gpus-per-rank",), {"type": SHARE, "help": "GPUs per process; may be a fraction."}),
    (("--node-packing-count",), {"type": AT_LEAST_1, "help": "How many such jobs share one node."}),
    (("--cpu-affinity",), {"help": "Binding of processes to cores."}),
    (("--key",), {"help": "Unique key: if a job with this key exists, none is added and its id is printed."}),
    (("--data",), {"type": JSON_OBJECT, "metavar": "JSON", "help": "A JSON object of your own."}),
)  # fmt: skip


def job_options(function: F) -> F:
    """Give a command the options that describe a job; :func:`add` takes their values."""
    for names, settings in reversed(_OPTIONS):
        function = click.option(*names, **settings)(function)
    return function


def add(db: Database, options: dict[str, Any]) -> Job:
    """Add the job that the options describe.

    Args:
        db: The database.
        options: Values by the names of :class:`~balsam_core.model.job.Job`'s fields, and ``param``, ``parent`` and
            ``env``; what was not given (None, False or empty) is left at the field's default.
    """
    from balsam_core.model.job import Job

    given = dict(options)
    selectors = given.pop("parent")
    parents = choose(db, parse(selectors)).ids() if selectors else []
    fields: dict[str, Any] = {
        "parameters": parameters("--param", given.pop("param")),
        "environ": mapping("--env", given.pop("env")),
        "input_files": patterns("--input-files", given.pop("input_files")),
        "stage_out_files": patterns("--stage-out-files", given.pop("stage_out_files")),
        "parents": parents,
    }
    # The flags that switch something off have the default None, so False is what the user said.
    for name in ("post_error_handler", "post_timeout_handler"):
        given[name] = given[name] or None
    fields |= {name: value for name, value in given.items() if value is not None}
    job = Job(**fields)
    job.check()
    db.jobs.add(job)
    return job
