"""Fixtures for all tests: a clean environment, DBs, and fresh databases on real servers.

``each_db`` (one a test) and ``module_db`` (one a module) run a test once for each kind of database, on a fresh DB of
the plugin that ships. ``make_db`` is a factory for tests that name the kind, ``database_url`` for those that need an
empty database.

A kind whose server or driver this machine lacks is skipped, with the reason; ``BALSAM_REQUIRE_BACKENDS``, a list
separated by commas, makes that a failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import plugin_dbs
import pytest
from db_servers import KINDS, REQUIRE, Databases, Missing, skip_kind
from namespaces import two_hosts
from plugin_site import PluginSite

from balsam_core import open_db
from balsam_core.admin.initialise import initialise
from balsam_core.testing.run import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from namespaces import Host

    from balsam_core import Database
    from balsam_core.dbdir.directory import DBDir

ORIGINAL_ENVIRON = dict(os.environ)
IGNORED = "BALSAM_TESTS_IGNORE"  # tells the workers of pytest-xdist what their parent ignores


def give_children_default_signals() -> None:
    """Let all that the tests start have the default signal dispositions, however the tests were started.

    Under nohup, or with & in a script, SIGHUP, SIGINT and SIGQUIT are ignored, and children inherit that. They don't
    inherit a handler that does nothing, by which this process goes on ignoring the signal.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    inherited = {int(number) for number in os.environ.get(IGNORED, "").split()}
    ignored = {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}
    ignored = (ignored | inherited) - {signal.SIGPIPE, signal.SIGXFSZ}  # Python ignores these, and not for its children
    for number in ignored:
        signal.signal(number, lambda *_: None)
    os.environ[IGNORED] = " ".join(str(int(number)) for number in ignored)


give_children_default_signals()

# Machines that run tests are busy; how long one example takes says nothing there.
hypothesis.settings.register_profile("balsam", deadline=None)
hypothesis.settings.load_profile("balsam")


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests away from the person's own databases and settings, and those away from the tests."""
    # libpq and the MariaDB client take defaults from their variables; the others change what is printed.
    foreign = ("BALSAM_", "PG", "MYSQL_", "MARIADB_")
    printing = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE"}
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if (name.startswith(foreign) and name != REQUIRE) or name in printing:
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        for name, place in {
            "XDG_CACHE_HOME": ".cache",
            "XDG_CONFIG_HOME": ".config",
            "XDG_DATA_HOME": ".local/share",
            "XDG_STATE_HOME": ".local/state",
            "XDG_RUNTIME_DIR": ".run",
        }.items():
            patch.setenv(name, str(home / place))
        # Launchers of other workers, and of the person, share no processors with those of these tests.
        patch.setenv("BALSAM_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture(scope="session", autouse=True)
def run_directory(_clean_environment: None) -> Iterator[Path]:
    """A directory that is removed when the run ends, however it ends, after all processes that the tests started."""
    guard = Guard("balsam-test-")
    yield guard.directory
    guard.close()


@pytest.fixture(scope="session")
def original_environ() -> dict[str, str]:
    """The environment that pytest was started with, for tools like pip that need the person's own settings."""
    return dict(ORIGINAL_ENVIRON)


@pytest.fixture(scope="session")
def empty_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of an SQLite DB without jobs, which nobody changes."""
    return initialise(tmp_path_factory.mktemp("empty") / "db").db.path


@pytest.fixture
def path(empty_db: Path, tmp_path: Path) -> Path:
    """The path of an SQLite DB without jobs, to change."""
    return Path(shutil.copytree(empty_db, tmp_path / "db"))


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    """The DB at ``path``, opened."""
    with open_db(path) as opened:
        yield opened


@pytest.fixture
def site(tmp_path: Path) -> PluginSite:
    """A folder to install plugins in; who has its environment has them."""
    return PluginSite(tmp_path / "site")


@pytest.fixture(scope="session")
def databases(run_directory: Path) -> Iterator[Databases]:
    """The servers of this test run."""
    running = Databases(run_directory)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def database_url(databases: Databases) -> Iterator[Callable[[str], str]]:
    """A function that makes a fresh empty database of a kind and returns its SQLAlchemy URL."""
    with contextlib.ExitStack() as stack:
        yield lambda kind: stack.enter_context(_fresh(databases, kind))


@pytest.fixture
def make_db(database_url: Callable[[str], str], tmp_path: Path) -> Callable[[str], DBDir]:
    """A function that makes a DB of a kind, on a fresh database of its own, with its tables and without jobs."""
    return lambda kind: plugin_dbs.make_db(tmp_path / f"{kind}-db", kind, database_url(kind))


@pytest.fixture(params=KINDS)
def each_db(request: pytest.FixtureRequest, make_db: Callable[[str], DBDir]) -> DBDir:
    """A DB without jobs: one for each test, once for each kind."""
    return make_db(request.param)


@pytest.fixture(scope="module", params=KINDS)
def module_db(
    request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DBDir]:
    """A DB without jobs: one for each module, once for each kind."""
    with _fresh(databases, request.param) as url:
        yield plugin_dbs.make_db(tmp_path_factory.mktemp(request.param) / "db", request.param, url)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts, ``alpha`` and ``beta``, that share the file system and a network link."""
    with two_hosts(tmp_path) as made:
        yield made


@contextlib.contextmanager
def _fresh(databases: Databases, kind: str) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(databases.fresh(kind))
        except Missing as err:
            missing = str(err)
        else:
            yield url
            return
    skip_kind(kind, missing)
