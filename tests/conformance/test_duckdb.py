"""An engine without savepoints, whose file one program may open at a time, passes: DuckDB."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from amounts import FULL
from plugin_site import PluginSite

PACKAGE = Path(__file__).parents[1] / "support" / "balsam_duckdb"
# In a quick run: what depends on transactions without savepoints, and on its SQL; all of it takes six minutes.
SELECTION = () if FULL else ("-k", "test_operations or test_exactly_once or test_identity or backup")
NO_ROLLBACK_TO = """
        if statement.startswith("ROLLBACK TO") and self._failed:
            self.run("ROLLBACK")
            statement = "BEGIN"
        elif "SAVEPOINT" in statement:
            statement = "SELECT 1"
"""


@pytest.fixture
def site(tmp_path: Path) -> PluginSite:
    """A folder with the backend."""
    made = PluginSite(tmp_path / "site")
    made.add("duckdb", "", package="balsam-duckdb", entry_points="[balsam.backends]\nduckdb = balsam_duckdb.backend\n")
    shutil.copytree(PACKAGE, made.path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return made


def run_suite(site: PluginSite, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "balsam_core.testing", "duckdb", "-q", *words],
        env={**os.environ, **site.environment, "TMPDIR": str(site.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_passes_the_suite(site: PluginSite) -> None:
    done = run_suite(site, *SELECTION)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "why"),
    [("", "syntax error"), (NO_ROLLBACK_TO, "ROLLBACK TO SAVEPOINT doesn't undo just what came after it")],
    ids=["no savepoints", "a ROLLBACK TO that does nothing"],
)
def test_savepoints_that_it_has_not_fail(site: PluginSite, code: str, why: str) -> None:
    for name, right, wrong in (
        ("engine.py", "SAVEPOINTS = False\n", "SAVEPOINTS = True\n"),
        ("driver.py", '        if statement == "COMMIT"', f'{code}        if statement == "COMMIT"'),
    ):
        module = site.path / PACKAGE.name / name
        assert right in module.read_text()
        module.write_text(module.read_text().replace(right, wrong, 1))
    done = run_suite(site, "-x", "-k", "an_error_of_the_driver_undoes_its_own_call_only")
    assert done.returncode == 1, done.stdout
    assert "the engine's savepoints don't work" in done.stdout
    assert why in done.stdout
