"""The pytest plugin of the suite: the backend, its DBs and their servers.

Making a DB may take seconds, so the tests of a run share three: ``suite_db`` is one whose server never runs, then one
whose server always runs, where the backend allows both; ``stopped_db`` is for tests that start, stop or move a DB.
``db`` is ``suite_db``, opened, without jobs and apps. No test may assume that ids begin at 1.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from balsam_core import open_db
from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import Unavailable
from balsam_core.model import calls
from balsam_core.plugin_types import ServerPolicy
from balsam_core.testing.run import SuiteRun
from balsam_core.transport.base import EncodedTransport
from balsam_core.watchdog import control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sqlalchemy import Engine

    from balsam_core import Database
    from balsam_core.backends.registry import Backend
    from balsam_core.client.jobs import Jobs
    from balsam_core.plugin_types import EngineRole

pytest.register_assert_rewrite("balsam_core.testing.cli", "balsam_core.testing.tools")

RUN = pytest.StashKey[SuiteRun]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that the command sets."""
    group = parser.getgroup("balsam", "conformance of a Balsam backend")
    group.addoption("--db-type", help="the db type to test")
    group.addoption("--option", action="append", default=[], metavar="NAME=VALUE", help="an option for its DBs")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin the run, before pytest makes its own temporary directory."""
    suite_run = config.stash[RUN] = SuiteRun()
    config.option.basetemp = str(suite_run.directory / "tmp")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run."""
    if RUN in config.stash:
        config.stash[RUN].close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat what asks for ``suite_db`` with and without a server, as far as the backend works so."""
    if "suite_db" in metafunc.fixturenames:
        modes = _modes(registry.load(metafunc.config.getoption("--db-type")))
        if metafunc.definition.get_closest_marker("once"):
            modes = modes[:1]
        metafunc.parametrize("suite_db", modes, indirect=True, scope="session")


def _modes(backend: Backend) -> tuple[str, ...]:
    policy = backend.identity.server
    if policy is ServerPolicy.NONE:
        return ("direct",)
    if policy is ServerPolicy.REQUIRED or backend.served_only:
        return ("served",)
    return ("direct", "served")


@dataclass(frozen=True)
class SuiteDB:
    """A DB of the run.

    Attributes:
        directory: What ``balsam.toml`` says of it.
        has_server: Whether its server runs.
    """

    directory: DBDir
    has_server: bool

    @property
    def path(self) -> Path:
        """The DB directory."""
        return self.directory.path

    def open(self) -> Database:
        """Open it as users' programs do."""
        return open_db(self.path)


@pytest.fixture(scope="session")
def suite_run(pytestconfig: pytest.Config) -> Iterator[SuiteRun]:
    """This run: its directory, and the processes that it started. At the end none of them may be left."""
    yield pytestconfig.stash[RUN]
    left = pytestconfig.stash[RUN].remaining_processes()
    assert not left, f"processes are left: {left}"


@pytest.fixture(scope="session")
def backend(pytestconfig: pytest.Config) -> Backend:
    """The backend under test."""
    return registry.load(pytestconfig.getoption("--db-type"))


@pytest.fixture(scope="session")
def options(pytestconfig: pytest.Config) -> dict[str, str]:
    """The backend's options for every DB, from ``--option``."""
    return dict(word.split("=", 1) for word in pytestconfig.getoption("--option"))


@pytest.fixture(scope="session")
def make_db(suite_run: SuiteRun, backend: Backend, options: dict[str, str]) -> Callable[[str], DBDir]:
    """A function that makes a DB without a server; it takes the name of the directory."""
    return lambda name: initialise(suite_run.directory / name, backend.identity.name, options).db


@pytest.fixture(scope="session")
def suite_dbs(suite_run: SuiteRun) -> Iterator[dict[str, SuiteDB]]:  # noqa: ARG001  (which ends after them)
    """The values of ``suite_db`` by mode, made when they are first asked for."""
    made: dict[str, SuiteDB] = {}
    yield made
    for one in made.values():
        if one.has_server:
            control.stop(one.directory)


@pytest.fixture(scope="session")
def suite_db(request: pytest.FixtureRequest, suite_dbs: dict[str, SuiteDB], make_db: Callable[[str], DBDir]) -> SuiteDB:
    """A DB without its server, then one whose server runs; only one of them where the backend works in one way."""
    mode: str = request.param
    if mode not in suite_dbs:
        directory = make_db(mode)
        if mode == "served":
            control.start(directory)
        suite_dbs[mode] = SuiteDB(directory, mode == "served")
    return suite_dbs[mode]


@pytest.fixture
def db(suite_db: SuiteDB) -> Iterator[Database]:
    """``suite_db``, opened, without jobs and apps."""
    with suite_db.open() as opened:
        empty(opened)
        yield opened


@pytest.fixture
def jobs(db: Database) -> Jobs:
    """The jobs of ``db``."""
    return db.jobs


def empty(db: Database) -> None:
    """Remove all launchers, jobs and apps, as a user could."""
    for info in db.run(calls.GetLaunchers()):
        db.run(calls.CloseLauncher(launcher=info.id))
    while db.run(calls.PromoteStagedInsert()):
        pass
    db.jobs.remove()
    for app in db.apps:
        db.apps.remove(app.name)


@pytest.fixture
def encoded(db: Database) -> EncodedTransport:
    """The transport of ``db``; the test is skipped where a test can't choose the request ids of writes."""
    if not isinstance(db.transport, EncodedTransport):
        pytest.skip(f"{type(db.transport).__name__} is no EncodedTransport: its request ids can't be chosen")
    return db.transport


@pytest.fixture
def engine(suite_db: SuiteDB, backend: Backend) -> Iterator[Callable[[EngineRole], Engine]]:
    """A function that makes an SQLAlchemy engine on ``suite_db``; it takes the role.

    The test is skipped where the role must be refused, because only the server may open the files or write to them.
    """
    made: list[Engine] = []
    beside = suite_db.has_server and backend.identity.server is ServerPolicy.OPTIONAL

    def make(role: EngineRole) -> Engine:
        if not backend.served_only and (role == "reader" or not beside):
            made.append(backend.create_engine(suite_db.directory, role))
            return made[-1]
        with pytest.raises(Unavailable) as refusal:
            made.append(backend.create_engine(suite_db.directory, role))
        pytest.skip(f"only the server may open it so: {refusal.value}")

    yield make
    for one in made:
        one.dispose()


@pytest.fixture
def owner(suite_db: SuiteDB, backend: Backend) -> Callable[[], AbstractContextManager[Engine]]:
    """A context of an engine that may change the tables of ``suite_db``; a server that forbids it is stopped for it."""

    @contextmanager
    def opened() -> Iterator[Engine]:
        stops = suite_db.has_server and backend.identity.server is ServerPolicy.OPTIONAL
        if stops:
            control.stop(suite_db.directory)
        try:
            made = backend.create_engine(suite_db.directory, "owner")
            try:
                yield made
            finally:
                made.dispose()
        finally:
            if stops:
                control.start(suite_db.directory)

    return opened


@dataclass
class StoppedDB:
    """A DB that was made by ``balsam init -o json``.

    Attributes:
        path: The DB directory.
        init_output: What the command printed.
    """

    path: Path
    init_output: str

    @property
    def directory(self) -> DBDir:
        """What ``balsam.toml`` says of it now."""
        return DBDir.open(self.path)


@pytest.fixture(scope="session")
def command_line_db(suite_run: SuiteRun, backend: Backend, options: dict[str, str]) -> Iterator[StoppedDB]:
    """The value of ``stopped_db``, made once a run."""
    from balsam_core.testing.cli import balsam

    path = suite_run.directory / "stopped"
    words = [word for name, value in options.items() for word in ("--option", f"{name}={value}")]
    made = StoppedDB(path, balsam.good("init", path, "--db-type", backend.identity.name, *words, "-o", "json").out)
    yield made
    control.stop(made.directory)


@pytest.fixture
def stopped_db(command_line_db: StoppedDB) -> StoppedDB:
    """A DB whose server does not run, for tests that start, stop or move it."""
    control.stop(command_line_db.directory)
    return command_line_db
