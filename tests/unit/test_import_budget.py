"""Nothing heavy at import: what the light commands and the two modules may not load.

Told by ``sys.modules`` of a fresh process, not by time, which says little on a busy machine.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from balsam_core.admin.initialise import initialise
from balsam_core.errors import BackendError

# The libraries that cost, and the parts of Balsam that need them. SQLAlchemy alone costs more than all else together.
HEAVY = {
    "MySQLdb",
    "alembic",
    "asyncio",
    "balsam_core.operations",
    "balsam_core.proxy",
    "balsam_core.schema",
    "psycopg",
    "rich",
    "sqlalchemy",
    "zmq",
}

COMMAND = """
import json, sys
sys.argv = ["balsam", *json.loads(sys.argv[1])]
from balsam_core.cli import main
try:
    main()
except SystemExit as end:
    if end.code:
        raise
sys.stdout.flush()
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
IMPORT = "import json, sys; __import__(sys.argv[1]); print(json.dumps(sorted(sys.modules)), file=sys.stderr)"


def loaded_by(*argv):
    done = subprocess.run([sys.executable, "-c", *argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def heavy(modules):
    return sorted(HEAVY & modules)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["init", "--help"], ["ls", "--help"], ["plugins", "list"]],
    ids=" ".join,
)
def test_light_commands_load_nothing_heavy(arguments):
    modules = loaded_by(COMMAND, json.dumps(arguments))
    assert "balsam_core.cli" in modules
    assert heavy(modules) == []


def test_a_plugin_of_ours_is_not_looked_at_before_it_is_used(tmp_path):
    modules = loaded_by(COMMAND, json.dumps(["init", str(tmp_path / "db")]))
    assert "balsam_sqlite" in modules
    assert not modules & {"balsam_core.backends.reports", "balsam_core.backends.probe"}


def test_another_plugin_that_was_looked_at_costs_no_second_look(tmp_path, site, monkeypatch):
    site.add("toy")
    for name, value in {**site.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    loaded_by(COMMAND, json.dumps(["init", str(tmp_path / "db"), "--db-type", "toy"]))
    modules = loaded_by(COMMAND, json.dumps(["ls", "--db", str(tmp_path / "db")]))
    assert "balsam_core.backends.reports" in modules
    assert "balsam_core.backends.probe" not in modules


@pytest.mark.parametrize("module", ["balsam_core", "balsam_core.plugin", "balsam_core.errors", "balsam_core.cli"])
def test_public_modules_load_nothing_heavy(module):
    modules = loaded_by(IMPORT, module)
    assert module in modules
    assert heavy(modules) == []


def test_the_plugin_api_loads_only_what_the_core_has_loaded_anyway():
    ours = {name for name in loaded_by(IMPORT, "balsam_core.plugin") if name.startswith("balsam_core.")}
    names = ("errors", "hookspecs", "hookspecs.backend", "plugin", "plugin_types", "version")
    assert ours == {f"balsam_core.{name}" for name in names}


def test_every_name_of_the_public_modules_opens():
    opened = "import {0}, sys; [getattr({0}, name) for name in {0}.__all__]"
    for module in ("balsam_core", "balsam_core.plugin"):
        subprocess.run([sys.executable, "-c", opened.format(module)], check=True, timeout=60)


def test_a_stopped_server_is_told_before_anything_heavy_is_loaded(tmp_path):
    pytest.importorskip("psycopg")
    try:
        initialise(tmp_path / "db", "postgres")
    except BackendError as lacking:
        pytest.skip(str(lacking))
    code = f"""
import json, sys
from balsam_core import open_db
from balsam_core.errors import ServerNotRunning
try:
    open_db({str(tmp_path / "db")!r})
except ServerNotRunning:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    assert heavy(loaded_by(code)) == []
