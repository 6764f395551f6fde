"""Imports point down only: the floors of the design, kept by reading every import statement of the packages.

An import counts wherever it stands, inside functions and under TYPE_CHECKING too: what a type names, the module knows.
So does a module that is named by a string, which is how the lazy doors and the command line find theirs.
"""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "balsam_core"

# Every module and folder directly in balsam_core stands on one floor and may use those on lower floors.
FLOORS = {
    "cli": 9,
    "__main__": 9,
    "launcher": 8,
    "service": 8,
    "backup": 7,
    "database": 7,
    "dbserver": 7,
    "initialise": 7,
    "inserting": 7,
    "jobs": 7,
    "watchdog": 7,
    "workdirs": 7,
    "backends": 6,
    "containment": 6,
    "discovery": 6,
    "quarantine": 6,
    "hookspecs": 5,
    "plugin": 5,
    "connector": 4,
    "proxy": 4,
    "transport": 4,
    "operations": 3,
    "schema": 2,
    "address": 1,
    "archive": 1,
    "certificates": 1,
    "dbdir": 1,
    "deadlines": 1,
    "files": 1,
    "filesystems": 1,
    "identity": 1,
    "logs": 1,
    "plugin_types": 1,
    "private_files": 1,
    "publication": 1,
    "settings": 1,
    "staging": 1,
    "stopping": 1,
    "errors": 0,
    "failpoints": 0,
    "model": 0,
}
# On one floor, nobody knows his neighbours, but for these: (who, whom). No circle.
NEIGHBOURS = {
    ("__main__", "cli"),
    ("backup", "database"),
    ("backup", "initialise"),
    ("database", "initialise"),
    ("database", "jobs"),
    ("database", "workdirs"),
    ("initialise", "dbserver"),
    ("initialise", "watchdog"),
    ("dbserver", "watchdog"),
    ("jobs", "inserting"),
    ("backends", "containment"),
    ("backends", "discovery"),
    ("backends", "quarantine"),
    ("quarantine", "discovery"),
    ("plugin", "hookspecs"),
    ("proxy", "transport"),
    ("address", "dbdir"),
    ("address", "files"),
    ("address", "identity"),
    ("certificates", "private_files"),
    ("dbdir", "files"),
    ("logs", "files"),
    ("private_files", "files"),
    ("publication", "address"),
    ("publication", "dbdir"),
    ("publication", "files"),
    ("publication", "identity"),
    ("settings", "files"),
    ("staging", "files"),
    ("model", "errors"),
}
# May use every floor, and no floor uses them: the door for users' code and the conformance suite.
ABOVE_ALL = {"__init__", "testing"}
# What the package itself says about itself, without opening a module.
OF_THE_PACKAGE = {"__version__", "__all__"}
PLUGIN_DOOR = "balsam_core.plugin"
PLUGIN_TEST_DOORS = {PLUGIN_DOOR, "balsam_core.testing"}


def python_files(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path, base):
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source, module, *, is_package):
    """Yield (line, dotted name) of each import; ``from a import b`` gives ``a.b``, since b may be a module."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                parents = package.split(".")
                kept = parents[: len(parents) - node.level + 1]
                start = ".".join([*kept, start] if start else kept)
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}"
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
            and re.fullmatch(r"balsam_\w+(\.\w+)+(:\w+)?", node.value)  # the whole string is a module
        ):
            yield node.lineno, node.value.replace(":", ".")


def unit_of(module):
    """Return the module or folder directly in balsam_core that a dotted name belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor_faults(source, module, *, is_package=False):
    """Return one line for each import that does not point down."""
    here = unit_of(module)
    faults = []
    for line, name in imported(source, module, is_package=is_package):
        if name.split(".")[0] != "balsam_core":
            if name.startswith("balsam_"):
                faults.append(f"{module}:{line}: the core imports the plugin {name}")
            continue
        there = unit_of(name)
        if there in OF_THE_PACKAGE or there == here or here in ABOVE_ALL:
            continue
        if there not in FLOORS:
            why = "which stands above all floors" if there in ABOVE_ALL else "which is no module in FLOORS"
            faults.append(f"{module}:{line}: {here} imports {name}, {why}")
        elif FLOORS[there] > FLOORS[here]:
            faults.append(f"{module}:{line}: {here} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})")
        elif FLOORS[there] == FLOORS[here] and (here, there) not in NEIGHBOURS:
            faults.append(f"{module}:{line}: {here} imports its neighbour {name}")
    return faults


def plugin_faults(source, module, *, doors=frozenset({PLUGIN_DOOR})):
    """Return one line for each import of the core by another way than the plugin authors' door."""
    own = module.split(".")[0]
    return [
        f"{module}:{line}: imports {name}, allowed is {', '.join(sorted(doors))}"
        for line, name in imported(source, module, is_package=False)
        if name.startswith("balsam_")
        and name.split(".")[0] != own
        and not any(f"{name}.".startswith(f"{door}.") for door in doors)
    ]


def test_every_module_stands_on_a_floor():
    present = {path.stem for path in CORE.glob("*.py")} | {path.name for path in CORE.iterdir() if python_files(path)}
    assert present <= FLOORS.keys() | ABOVE_ALL, "give the new module a floor in FLOORS"


def test_neighbours_share_a_floor_and_form_no_circle():
    circle_finder: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for who, whom in NEIGHBOURS:
        assert FLOORS[who] == FLOORS[whom]
        circle_finder.add(who, whom)
    circle_finder.prepare()  # raises CycleError


def test_imports_of_the_core_point_down():
    faults = []
    for path in python_files(CORE):
        name = module_name(path, ROOT)
        if unit_of(name) in FLOORS:
            faults += floor_faults(path.read_text(), name, is_package=path.name == "__init__.py")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("plugin", sorted(ROOT.glob("plugins/*/")), ids=lambda path: path.name)
def test_plugins_use_only_their_door(plugin):
    faults = []
    for path in python_files(plugin):
        doors = PLUGIN_TEST_DOORS if "tests" in path.relative_to(plugin).parts else {PLUGIN_DOOR}
        faults += plugin_faults(path.read_text(), module_name(path, plugin), doors=doors)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("balsam_core.errors", "import balsam_core.model.job"),
        ("balsam_core.model.job", "def f():\n    from balsam_core.dbdir import DBDir"),
        ("balsam_core.transport", "if TYPE_CHECKING:\n    from balsam_core import plugin"),
        ("balsam_core.model.job", "from ..schema import tables"),
        ("balsam_core.logs", "from .dbdir import DBDir"),
        ("balsam_core.plugin", "NAMES = {'x': 'balsam_core.database'}"),
        ("balsam_core.plugin", "ENTRY = 'balsam_core.cli:main'"),
        ("balsam_core.launcher.loop", "from balsam_core import open_db"),
        ("balsam_core.cli.main", "from balsam_core.testing import suite"),
        ("balsam_core.backends", "import balsam_sqlite.backend"),
    ],
)
def test_upward_imports_are_found(module, source):
    assert len(floor_faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("balsam_core.model.job", "from balsam_core.model.states import State"),
        ("balsam_core.model.job", "from .states import State"),
        ("balsam_core.cli.main", "from balsam_core import __version__, backends"),
        ("balsam_core.transport", "'''balsam_core.database'''\nTEXT = 'see balsam_core.database for more'"),
        ("balsam_core.testing.suite", "from balsam_core import cli, open_db"),
        ("balsam_core.proxy.client", "from balsam_core.transport import Transport"),
    ],
)
def test_downward_imports_are_not_blamed(module, source):
    assert floor_faults(source, module) == []


@pytest.mark.parametrize(
    "source",
    [
        "from balsam_core import open_db",
        "import balsam_core.transport",
        "def f():\n    from balsam_core.plugin_types import DBType",
        "import balsam_mysql",
    ],
)
def test_other_doors_are_found_in_plugins(source):
    assert len(plugin_faults(source, "balsam_sqlite.backend")) == 1


def test_plugin_door_is_open():
    source = "from balsam_core import plugin\nfrom balsam_core.plugin import DBType\nfrom balsam_sqlite import engine"
    assert plugin_faults(source, "balsam_sqlite.backend") == []
