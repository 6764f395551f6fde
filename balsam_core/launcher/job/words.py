"""The command lines and the environment of a job's processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from balsam_core.errors import InvalidInput
from balsam_core.model.command import fill, split

if TYPE_CHECKING:
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.app import App
    from balsam_core.model.job import Job

__all__ = ["base_environment", "command_words", "hook_words", "job_environment"]

_OF_A_JOB = ("BALSAM_JOB_ID", "BALSAM_PARENT_IDS", "BALSAM_JOB_ERROR", "BALSAM_JOB_TIMEOUT")


def command_words(job: Job, app: App | None) -> list[str]:
    """Return the words of the job's command line.

    An app's template is always filled from the parameters; a command of the job's own, and ``args``, only where the job
    has any, so that braces mean themselves in a plain command.

    Raises:
        InvalidInput: A quotation is open, a parameter is missing, or there is no command.
    """
    if job.app:
        words = fill(_split(_known(job, app).executable, f"app {job.app!r}"), job.parameters, what=f"app {job.app!r}")
    else:
        words = _filled(job, job.command, "command")
    words += _filled(job, job.args, "args")
    if not words or not words[0]:
        raise InvalidInput("the command line is empty")
    return words


def hook_words(job: Job, app: App | None, hook: str) -> list[str]:
    """Return the words of the job's ``preprocess`` or ``postprocess``, its own or the app's; empty for none."""
    text = getattr(job, hook) or (getattr(_known(job, app), hook) if job.app else "")
    return _filled(job, text, hook)


def _known(job: Job, app: App | None) -> App:
    if app is None:
        raise InvalidInput(f"there is no app {job.app!r}")
    return app


def _filled(job: Job, text: str, what: str) -> list[str]:
    if not text:
        return []
    words = _split(text, what)
    return fill(words, job.parameters, what=what) if job.parameters else words


def _split(text: str, what: str) -> list[str]:
    # shlex takes 40 us for a short line; most command lines hold nothing that it would treat in any special way.
    if text.isascii() and not _SPECIAL.intersection(text):
        return text.split()
    return split(text, what=what)


_SPECIAL = frozenset("'\"\\") | {chr(c) for c in range(32) if chr(c) not in " \t\r\n"}


def base_environment(directory: DBDir, launcher: int) -> dict[str, str]:
    """Return the environment that all jobs share: the launcher's own, and where the database is."""
    base = {name: value for name, value in os.environ.items() if name not in _OF_A_JOB}
    base["BALSAM_DB_PATH"] = str(directory.path)
    base["BALSAM_LAUNCHER_ID"] = str(launcher)
    return base


def job_environment(base: dict[str, str], job: Job, app: App | None) -> dict[str, str]:
    """Return the environment of a job's processes: the app's and then the job's variables go over the shared ones."""
    own = {"BALSAM_JOB_ID": str(job.id), "BALSAM_PARENT_IDS": " ".join(map(str, job.parents))}
    return {**base, **(app.environ if app else {}), **job.environ, **own}
