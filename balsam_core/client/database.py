"""``Database``: an open DB, for the command line, the launcher and users' code."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self, TypeVar

from balsam_core.client.jobs import Jobs, added_id
from balsam_core.client.slices import told_how_far
from balsam_core.errors import InvalidInput, NotFound, TimedOut
from balsam_core.model.app import App
from balsam_core.model.calls import MOST_JOBS, AddApp, GetApps, GetInfo, RemoveApp
from balsam_core.model.filters import Compare
from balsam_core.model.job import Job
from balsam_core.model.states import END
from balsam_core.model.text import shortened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from balsam_core.backends.registry import Backend
    from balsam_core.client.dead_launchers import Closed
    from balsam_core.client.explaining import Explanation
    from balsam_core.client.launchers import KnownLauncher
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import Call, Info
    from balsam_core.transport.base import Transport

R = TypeVar("R")


class Apps:
    """The applications of a database: ``db.apps``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def add(self, *apps: App, replace: bool = False) -> None:
        """Define apps.

        Args:
            apps: The apps.
            replace: Whether an app of the same name is redefined; jobs that have not started use the new one.

        Raises:
            InvalidInput: A value can't be right; none was defined.
            Conflict: An app of this name exists and differs. Or, with ``replace``, its templates would ask for a
                parameter that a job which has not started doesn't give.
            PartlyDone: An error came after some were defined.
        """
        for app in apps:
            if not isinstance(app, App):
                raise InvalidInput(f"only App objects can be defined, not {shortened(app)}")
            app.check()
        defined: list[str] = []
        with told_how_far("defined", defined, "app"):
            for app in apps:
                self._transport.run(AddApp(app=app, replace=replace))
                defined.append(app.name)

    def get(self, name: str) -> App:
        """Read one app.

        Raises:
            NotFound: There is no such app.
        """
        return self._transport.run(GetApps(names=[name]))[0]

    def __iter__(self) -> Iterator[App]:
        apps: list[App] = self._transport.run(GetApps())
        return iter(apps)

    def remove(self, name: str) -> None:
        """Remove an app.

        Raises:
            Conflict: A job uses it.
        """
        self._transport.run(RemoveApp(name=name))


class Database:
    """An open DB directory: ``db.jobs``, ``db.apps``. Use it as a context manager or close it.

    It must not be used in a forked child: open the DB again there.
    """

    def __init__(self, directory: DBDir, transport: Transport) -> None:
        self.directory = directory
        self.transport = transport
        self.apps = Apps(transport)
        self.jobs = Jobs(transport, before_change=self.end_dead_launchers)

    @property
    def path(self) -> Path:
        """The DB directory."""
        return self.directory.path

    def run(self, call: Call[R], *, timeout: float | None = None) -> R:
        """Run one call; ``timeout`` in seconds bounds it."""
        return self.transport.run(call, timeout=timeout)

    def info(self) -> Info:
        """Read identity, schema version and the database's clock."""
        return self.run(GetInfo())

    def workdir(self, job: Job) -> Path:
        """Return the job's working directory, which a launcher makes when it starts the job."""
        from balsam_core.dbdir.workdirs import workdir

        return workdir(self.directory, job)

    def launchers(self) -> list[KnownLauncher]:
        """Read which launchers have not ended, and whether they live."""
        from balsam_core.client.launchers import known_launchers

        return known_launchers(self, self.directory)

    def end_dead_launchers(self) -> list[Closed]:
        """Give back the jobs of launchers that have died; return these launchers.

        ``jobs.kill()``, ``retry()`` and ``remove()`` do so first, else they could not change those jobs. It takes some
        seconds where the processes of one are just being ended.

        Raises:
            BalsamError: The database can't be asked, or refuses.
        """
        from balsam_core.client.dead_launchers import PATIENCE, end_dead_launchers

        return end_dead_launchers(self.directory, self.run, patience=PATIENCE)

    def explain(self, job: Job | int) -> Explanation:
        """Explain why a job waits, or how it ended, and what to do about it: ``print(db.explain(job))``.

        Raises:
            NotFound: There is no such job.
        """
        from balsam_core.client.explaining import explain

        return explain(self.transport, self.directory, added_id(job))

    def as_completed(self, jobs: Iterable[Job | int], timeout: float | None = None) -> Iterator[Job]:
        """Give the jobs as they end, each once, about in the order of ending.

        Args:
            jobs: Jobs or ids.
            timeout: Seconds to wait in all; None for ever.

        Raises:
            TimedOut: Time is over and jobs are left.
            NotFound: A job was removed.
        """
        if not isinstance(jobs, Iterable):
            raise InvalidInput(f"as_completed() takes a list of jobs or ids, not {shortened(jobs)}")
        waiting = {added_id(job) for job in jobs}
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.05
        while waiting:
            progress = False
            started = time.monotonic()
            for job in self._take_ended(waiting):
                progress = True
                yield job
            if not waiting:
                return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimedOut(f"{len(waiting)} of the jobs had not ended after {timeout:g} s")
            # Queries must stay a small part of the time, whatever the number of jobs.
            pause = 0.05 if progress else min(pause * 1.5, 1.0)
            pause = max(pause, 5 * (time.monotonic() - started))
            time.sleep(pause if left is None else min(pause, left))

    def _take_ended(self, waiting: set[int]) -> Iterator[Job]:
        """Give the ended ones among the waiting jobs and take them out of the set."""
        ids = sorted(waiting)
        for start in range(0, len(ids), MOST_JOBS):
            chunk = ids[start : start + MOST_JOBS]
            in_chunk = self.jobs.where(Compare("id", "in", chunk))
            if removed := set(chunk) - set(in_chunk.ids()):
                waiting -= removed
                raise NotFound(f"job {min(removed)} was removed while waited for")
            ended = in_chunk.where(Compare("state", "in", sorted(END)))
            for job in ended.order_by("state_since").limit(len(chunk)):
                waiting.discard(added_id(job))
                yield job

    def close(self) -> None:
        """Close the connection."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Database {self.directory.db_type} at {self.path}>"


def open_db(path: str | Path | None = None) -> Database:
    """Open a database.

    Args:
        path: The DB directory; None for ``BALSAM_DB_PATH``, then ``default_db_path`` of ``settings.toml``, then
            ``default_balsamdb`` in the user's data directory, which is created on first use.

    Raises:
        DBDirError: The directory is no usable DB.
        Conflict: Its database belongs to another DB directory.
        BackendError: The plugin of its db type is missing or broken.
        ServerNotRunning: This db type needs its server.
        SchemaMismatch: Program and database speak different versions.
    """
    from balsam_core.backends import registry

    directory = open_directory(path, create=True)
    backend = registry.load(directory.db_type)
    _refuse_stopped(backend, directory)
    return Database(directory, backend.open_transport(directory))


def _refuse_stopped(backend: Backend, directory: DBDir) -> None:
    """Raise ServerNotRunning for a DB that needs its server while none is published: before drivers are imported."""
    from balsam_core.dbdir.publication import published_address, server_not_running
    from balsam_core.errors import AddressError
    from balsam_core.plugin_types import ServerPolicy

    if backend.server_policy(directory) is ServerPolicy.REQUIRED:
        with contextlib.suppress(AddressError):  # it is waited for
            if published_address(directory) is None:
                raise server_not_running(directory)


def open_directory(path: str | Path | None, *, create: bool) -> DBDir:
    """Return the DB directory that :func:`open_db` opens; the default one is created only on request."""
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.settings import resolve_db_path

    resolved = resolve_db_path(path)
    if create and resolved.source == "default":
        from balsam_core.admin.initialise import ensure_default

        return ensure_default(resolved.path)
    return DBDir.open(resolved.path)


class CurrentJob:
    """The job that this process runs in, with its database; from :func:`current_job`."""

    def __init__(self, db: Database, job: Job) -> None:
        self.db = db
        self.job = job

    @property
    def id(self) -> int:
        """The job's id."""
        return added_id(self.job)

    @property
    def parameters(self) -> dict[str, object]:
        """The job's parameters."""
        return self.job.parameters

    def parents(self) -> list[Job]:
        """Read the job's parents."""
        return list(self.db.jobs.where(Compare("id", "in", [p for p in self.job.parents if isinstance(p, int)])))

    def spawn(self, **fields: object) -> Job:
        """Add a child of this job, in its workflow unless another is named; it starts when this job has finished."""
        fields.setdefault("workflow", self.job.workflow)
        fields.setdefault("name", f"{self.job.name}-child")
        job = Job(**fields)  # type: ignore[arg-type]
        job.parents = [*job.parents, self.id]
        self.db.jobs.add(job)
        return job


def current_job(db: Database | None = None) -> CurrentJob:
    """Return the job that this process runs in, by ``BALSAM_JOB_ID`` and ``BALSAM_DB_PATH``.

    Raises:
        NotFound: This process doesn't run in a job, or the job was removed.
    """
    text = os.environ.get("BALSAM_JOB_ID", "")
    if not text.isascii() or not text.isdigit():
        found = f"is {text!r}" if text else "is not set"
        raise NotFound(f"current_job() works only inside a job: BALSAM_JOB_ID {found}")
    db = db or open_db()
    return CurrentJob(db, db.jobs.get(int(text)))
