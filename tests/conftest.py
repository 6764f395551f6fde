"""Fixtures for all tests: a clean environment, and fresh databases on real servers.

``engine_url`` (one fresh database a test) and ``module_engine_url`` (one a module) run a test once for each kind of
database. ``database_url`` is a factory for tests that name the kind or need several databases.

A kind whose server or driver this machine lacks is skipped, with the reason; ``BALSAM_REQUIRE_BACKENDS``, a list
separated by commas, makes that a failure.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import hypothesis
import pytest
from db_servers import KINDS, Databases, Missing

from balsam_core.testing import run as testing_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REQUIRE = "BALSAM_REQUIRE_BACKENDS"
ORIGINAL_ENVIRON = dict(os.environ)

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
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_process_outlives_the_run(_clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """End what the tests have started, however the run ends: pytest may be killed before it has cleaned up."""
    mark = str(tmp_path_factory.mktemp("run"))
    guard = subprocess.Popen(
        [sys.executable, "-P", testing_run.__file__, mark], stdin=subprocess.PIPE, cwd="/", start_new_session=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(testing_run.MARK, mark)
        yield
    guard.communicate()


@pytest.fixture(scope="session")
def original_environ() -> dict[str, str]:
    """The environment that pytest was started with, for tools like pip that need the person's own settings."""
    return dict(ORIGINAL_ENVIRON)


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """The servers of this test run."""
    running = Databases()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def database_url(databases: Databases) -> Iterator[Callable[[str], str]]:
    """A function that makes a fresh empty database of a kind and returns its SQLAlchemy URL."""
    with contextlib.ExitStack() as stack:
        yield lambda kind: stack.enter_context(_fresh(databases, kind))


@pytest.fixture(params=KINDS)
def engine_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh empty database: one for each test, once for each kind."""
    with _fresh(databases, request.param) as url:
        yield url


@pytest.fixture(scope="module", params=KINDS)
def module_engine_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh empty database: one for each module, once for each kind."""
    with _fresh(databases, request.param) as url:
        yield url


@contextlib.contextmanager
def _fresh(databases: Databases, kind: str) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(databases.fresh(kind))
        except Missing as missing:
            lacking = str(missing)
        else:
            yield url
            return
    if kind in os.environ.get(REQUIRE, "").replace(" ", "").split(","):
        pytest.fail(f"{REQUIRE} asks for {kind}, but {lacking}", pytrace=False)
    pytest.skip(f"{kind}: {lacking}")
