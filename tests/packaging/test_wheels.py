"""The distributions as users get them: what is in the wheels, and that they work in a fresh virtual environment."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SOURCES = {"balsam_core": ROOT, **{f"balsam_{path.name}": path for path in ROOT.glob("plugins/*/")}}
BACKEND_ERROR = 12
UNAVAILABLE = 6


@pytest.fixture(scope="module")
def wheels(tmp_path_factory, original_environ):
    """Each distribution's wheel by its package, built from its own source archive."""
    target = tmp_path_factory.mktemp("dist")
    for source in SOURCES.values():
        # Both at once makes the wheel from the archive, so a file that the archive lacks is noticed.
        run([sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source], original_environ)
    return {path.name.split("-")[0]: path for path in target.glob("*.whl")}


@pytest.fixture(scope="module")
def core_only(tmp_path_factory, wheels, original_environ):
    """A fresh environment with the core and what it said there before any plugin came."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home / "venv", symlinks=True)
    environment = Environment(home, original_environ)
    environment.install(wheels["balsam_core"])
    answers = {words: environment.balsam(*words.split()) for words in ("init x", "plugins list", "ls", "--help")}
    assert not (environment.home / "x").exists()
    return environment, answers


@pytest.fixture(scope="module")
def with_sqlite(core_only, wheels):
    """The same environment with balsam-sqlite."""
    environment, _ = core_only
    environment.install(wheels["balsam_sqlite"])
    return environment


class Environment:
    """A virtual environment and a home directory, both empty at first."""

    def __init__(self, home, original_environ):
        self.home = home
        self.original_environ = original_environ
        self.bin = home / "venv" / "bin"

    def install(self, wheel):
        """Install a wheel with pip from outside; its dependencies come from the package index."""
        command = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--quiet", wheel]
        run(command, self.original_environ)

    def balsam(self, *words):
        """Run balsam as a new user would; the exit code is for the caller to judge."""
        environ = {"PATH": f"{self.bin}:{os.defpath}", "HOME": str(self.home), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [self.bin / "balsam", *words],
            env=environ,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def works(self, *words):
        """Run balsam where it has to succeed, and return what it printed."""
        done = self.balsam(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def run(argv, environ):
    environ = {name: value for name, value in environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def project(package):
    return tomllib.loads((SOURCES[package] / "pyproject.toml").read_text())["project"]


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_versions_are_in_lockstep():
    import balsam_core

    version = project("balsam_core")["version"]
    assert balsam_core.__version__ == version
    assert {project(package)["version"] for package in SOURCES} == {version}
    major, minor = (int(part) for part in version.split(".")[:2])
    pin = f">={major}.{minor},<{major}.{minor + 1}"
    extras = project("balsam_core")["optional-dependencies"]
    for package in SOURCES.keys() - {"balsam_core"}:
        assert f"balsam-core{pin}" in project(package)["dependencies"]
        kind = package.removeprefix("balsam_")
        assert extras[kind] == [f"balsam-{kind}{pin}"]


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_wheel_holds_its_package_whole_and_nothing_else(wheels, package):
    names = names_in(wheels[package])
    assert {name.split("/")[0] for name in names} == {package, wheels[package].name.split("-py3")[0] + ".dist-info"}
    source = SOURCES[package] / package
    files = {f"{package}/{path.relative_to(source)}" for path in source.rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} == {n for n in names if n.startswith(f"{package}/")}
    assert f"{package}/py.typed" in names


def test_core_wheel_holds_the_migrations(wheels):
    migrations = [name for name in names_in(wheels["balsam_core"]) if "/schema/migrations/versions/" in name]
    assert any(re.search(r"/0001_\w+\.py$", name) for name in migrations)


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_metadata_names_licence_readme_and_python(wheels, package):
    with zipfile.ZipFile(wheels[package]) as archive:
        (place,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(place))
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_core_alone_says_which_backend_to_install(core_only):
    _, answers = core_only
    for command in ("init x", "ls"):
        assert answers[command].returncode == BACKEND_ERROR
        assert "pip install balsam-sqlite" in answers[command].stderr
    assert answers["--help"].returncode == 0


def test_core_alone_lists_the_official_plugins_as_missing(core_only):
    _, answers = core_only
    assert answers["plugins list"].returncode == 0
    for name in ("sqlite", "postgres", "mysql"):
        assert f"balsam-{name}" in answers["plugins list"].stdout
    assert "pip install" in answers["plugins list"].stdout


def test_core_and_sqlite_run_an_ensemble(with_sqlite):
    with_sqlite.works("plugins", "check")
    with_sqlite.works("init", "testdb", "--db-type", "sqlite3")
    db = ("--db", "testdb")
    with_sqlite.works(*db, "app", "--name", "greet", "--executable", "echo hello {who}")
    with_sqlite.works(*db, "job", "--name", "first", "--workflow", "w", "--app", "greet", "--param", "who=world")
    with_sqlite.works(*db, "run", "--", "echo", "no app")
    with_sqlite.works(*db, "launcher", "--consume-all")
    jobs = json.loads(with_sqlite.works(*db, "ls", "-o", "json"))
    assert [job["state"] for job in jobs] == ["JOB_FINISHED", "JOB_FINISHED"]
    outputs = [path.read_text() for path in (with_sqlite.home / "testdb" / "data" / "w").glob("first_*/*out*")]
    assert outputs == ["hello world\n"]


def test_init_on_a_database_refreshes_it(with_sqlite):
    with_sqlite.works("init", "again")
    with_sqlite.works("init", "again")
    with_sqlite.works("--db", "again", "ls")


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
def test_a_db_with_a_server_of_its_own_runs_an_ensemble(core_only, wheels, original_environ, kind):
    environment, _ = core_only
    wanted = kind in original_environ.get("BALSAM_REQUIRE_BACKENDS", "")
    try:
        environment.install(wheels[f"balsam_{kind}"])
    except AssertionError as err:  # mysqlclient is compiled
        if wanted:
            raise
        pytest.skip(f"the driver of {kind} can't be installed: {str(err)[-200:]}")
    made = environment.balsam("init", kind, "--db-type", kind)
    if made.returncode == BACKEND_ERROR and not wanted:
        pytest.skip(made.stderr)
    assert made.returncode == 0, made.stderr
    db = ("--db", kind)
    refused = environment.balsam(*db, "ls")
    assert refused.returncode == UNAVAILABLE
    assert f"start it with balsam dbserver --path={environment.home / kind}" in refused.stderr
    environment.works("dbserver", "--path", kind)
    try:
        environment.works(*db, "run", "--", "echo", "hello")
        environment.works(*db, "launcher", "--consume-all")
        assert [job["state"] for job in json.loads(environment.works(*db, "ls", "-o", "json"))] == ["JOB_FINISHED"]
    finally:
        environment.works("dbserver", "--stop", "--path", kind)
