"""The pytest plugin of the suite: the backend, its DBs and their servers.

Making a DB may take seconds, so a run has few of them: ``place`` is a DB for each way in which the backend works,
without a server and with one; ``spare`` is for tests that start, stop and move things. ``db`` is an open ``place``
without jobs and apps. Nothing may assume that ids begin at 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from balsam_core import open_db
from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import ServerNotRunning, Unavailable
from balsam_core.model import calls
from balsam_core.plugin_types import ServerPolicy
from balsam_core.testing.run import Run
from balsam_core.transport.base import EncodedTransport
from balsam_core.watchdog import control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from balsam_core import Database
    from balsam_core.backends.registry import Backend
    from balsam_core.client.jobs import Jobs
    from balsam_core.plugin_types import EngineRole

pytest.register_assert_rewrite("balsam_core.testing.tools")

RUN = pytest.StashKey[Run]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that the command sets."""
    group = parser.getgroup("balsam", "conformance of a Balsam backend")
    group.addoption("--db-type", help="the db type to test")
    group.addoption("--option", action="append", default=[], metavar="NAME=VALUE", help="an option for its DBs")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin the run, before pytest makes its own temporary directory."""
    run = config.stash[RUN] = Run()
    config.option.basetemp = str(run.directory / "tmp")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run."""
    if RUN in config.stash:
        config.stash[RUN].close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat what asks for ``place`` for each way in which the backend works."""
    if "place" in metafunc.fixturenames:
        modes = _modes(registry.load(metafunc.config.getoption("--db-type")))
        if metafunc.definition.get_closest_marker("once"):
            modes = modes[:1]
        metafunc.parametrize("place", modes, indirect=True, scope="session")


def _modes(backend: Backend) -> tuple[str, ...]:
    policy = backend.identity.server
    if policy is ServerPolicy.NONE:
        return ("direct",)
    if policy is ServerPolicy.REQUIRED or "served-only" in backend.identity.capabilities:
        return ("served",)
    return ("direct", "served")


@dataclass(frozen=True)
class Place:
    """A DB of the run, with or without its server."""

    directory: DBDir
    served: bool

    @property
    def path(self) -> Path:
        """The DB directory."""
        return self.directory.path

    def open(self) -> Database:
        """Open it as users' programs do."""
        return open_db(self.path)


@pytest.fixture(scope="session")
def run(pytestconfig: pytest.Config) -> Iterator[Run]:
    """This run of the suite; in the end nothing of it may run."""
    yield pytestconfig.stash[RUN]
    left = pytestconfig.stash[RUN].left()
    assert not left, f"processes are left: {left}"


@pytest.fixture(scope="session")
def backend(pytestconfig: pytest.Config) -> Backend:
    """The backend that is tested."""
    return registry.load(pytestconfig.getoption("--db-type"))


@pytest.fixture(scope="session")
def options(pytestconfig: pytest.Config) -> dict[str, str]:
    """What the DBs are made with."""
    return dict(word.split("=", 1) for word in pytestconfig.getoption("--option"))


@pytest.fixture(scope="session")
def make_db(run: Run, backend: Backend, options: dict[str, str]) -> Callable[[str], DBDir]:
    """A function that makes a DB of a name."""
    return lambda name: initialise(run.directory / name, backend.identity.name, options).db


@pytest.fixture(scope="session")
def places(run: Run) -> Iterator[dict[str, Place]]:  # noqa: ARG001  (which ends after them)
    """The DBs of the run by mode, made when they are first asked for."""
    made: dict[str, Place] = {}
    yield made
    for place in made.values():
        if place.served:
            control.stop(place.directory)


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest, places: dict[str, Place], make_db: Callable[[str], DBDir]) -> Place:
    """A DB, once for each way in which the backend works."""
    mode: str = request.param
    if mode not in places:
        directory = make_db(mode)
        if mode == "served":
            control.start(directory)
        places[mode] = Place(directory, mode == "served")
    return places[mode]


@pytest.fixture
def db(place: Place) -> Iterator[Database]:
    """An open DB without jobs and apps."""
    with place.open() as opened:
        empty(opened)
        yield opened


@pytest.fixture
def jobs(db: Database) -> Jobs:
    """Its jobs."""
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
    """The transport of ``db``, where it lets a test choose the request ids of writes."""
    if not isinstance(db.transport, EncodedTransport):
        pytest.skip(f"{type(db.transport).__name__} is no EncodedTransport: its request ids can't be chosen")
    return db.transport


@pytest.fixture
def engine(place: Place, backend: Backend) -> Iterator[Callable[[EngineRole], Engine]]:
    """A function that makes an SQLAlchemy engine on ``place``."""
    made: list[Engine] = []

    def make(role: EngineRole) -> Engine:
        try:
            made.append(backend.create_engine(place.directory, role))
        except (ServerNotRunning, Unavailable) as err:
            if not (place.served and backend.identity.server is ServerPolicy.OPTIONAL):
                raise
            pytest.skip(f"no engine beside the server: {err}")
        return made[-1]

    yield make
    for one in made:
        one.dispose()


@dataclass
class Spare:
    """A DB to start, stop and move; ``said`` is what ``balsam init`` printed."""

    path: Path
    said: str

    @property
    def directory(self) -> DBDir:
        """Its description."""
        return DBDir.open(self.path)


@pytest.fixture(scope="session")
def spare_db(run: Run, backend: Backend, options: dict[str, str]) -> Iterator[Spare]:
    """Made by the command line once a run; see ``spare``."""
    from balsam_core.testing.tools import balsam

    path = run.directory / "spare"
    words = [word for name, value in options.items() for word in ("--option", f"{name}={value}")]
    done = balsam("init", path, "--db-type", backend.identity.name, *words, "-o", "json")
    assert done.returncode == 0, f"balsam init failed: {done.stderr}"
    made = Spare(path, done.stdout)
    yield made
    control.stop(made.directory)


@pytest.fixture
def spare(spare_db: Spare) -> Spare:
    """The DB for tests that start, stop and move things, without a running server."""
    control.stop(spare_db.directory)
    return spare_db
