"""Imports between packages point down only, and no two modules import each other: every import statement is read.

An import counts wherever it stands, inside functions and under TYPE_CHECKING too: what a type names, the module knows.
So does a module that is named by a string, which is how the lazy allowed and the command line find theirs.
"""

from __future__ import annotations

import graphlib

import pytest
from import_graph import (
    ABOVE_ALL,
    CORE,
    FLOOR_OF,
    OF_THE_PACKAGE,
    ROOT,
    TO_COME,
    imported,
    module_name,
    python_files,
    unit_of,
)

PLUGIN_API = "balsam_core.plugin"
PLUGIN_TEST_APIS = {PLUGIN_API, "balsam_core.testing"}


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
        if there not in FLOOR_OF:
            why = "which stands above all floors" if there in ABOVE_ALL else "which has no floor"
            faults.append(f"{module}:{line}: {here} imports {name}, {why}")
        elif FLOOR_OF[there] > FLOOR_OF[here]:
            faults.append(f"{module}:{line}: {here} imports {name}, which stands above it")
        elif FLOOR_OF[there] == FLOOR_OF[here]:
            faults.append(f"{module}:{line}: {here} imports its neighbour {name}")
    return faults


def plugin_faults(source, module, *, allowed=frozenset({PLUGIN_API})):
    """Return one line for each import of the core by another way than the public API."""
    own = module.split(".")[0]
    return [
        f"{module}:{line}: imports {name}, allowed is {', '.join(sorted(allowed))}"
        for line, name in imported(source, module, is_package=False)
        if name.startswith("balsam_")
        and name.split(".")[0] != own
        and not any(f"{name}.".startswith(f"{api}.") for api in allowed)
    ]


def test_every_package_has_a_floor():
    present = {path.stem for path in CORE.glob("*.py")} | {path.name for path in CORE.iterdir() if python_files(path)}
    assert present == (FLOOR_OF.keys() - TO_COME) | ABOVE_ALL, "FLOORS and the packages of balsam_core differ"


def test_few_modules_stand_beside_the_packages():
    assert len(list(CORE.glob("*.py"))) <= 9


def test_modules_import_without_a_circle():
    modules = {module_name(path, ROOT): path for path in python_files(CORE)}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = graph.setdefault(module, set())
        for _line, name in imported(path.read_text(), module, is_package=path.name == "__init__.py"):
            parts = name.split(".")
            parents = [".".join(parts[:length]) for length in range(len(parts), 1, -1)]
            found.update([one for one in parents if one in modules][:1])
        found.discard(module)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_imports_of_the_core_point_down():
    faults = []
    for path in python_files(CORE):
        name = module_name(path, ROOT)
        if unit_of(name) in FLOOR_OF:
            faults += floor_faults(path.read_text(), name, is_package=path.name == "__init__.py")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("plugin", sorted(ROOT.glob("plugins/*/")), ids=lambda path: path.name)
def test_plugins_use_only_the_public_api(plugin):
    faults = []
    for path in python_files(plugin):
        allowed = PLUGIN_TEST_APIS if "tests" in path.relative_to(plugin).parts else {PLUGIN_API}
        faults += plugin_faults(path.read_text(), module_name(path, plugin), allowed=allowed)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("balsam_core.errors", "import balsam_core.model.job"),
        ("balsam_core.model.job", "def f():\n    from balsam_core.dbdir.directory import DBDir"),
        ("balsam_core.transport.native", "if TYPE_CHECKING:\n    from balsam_core import plugin"),
        ("balsam_core.model.job", "from ..schema import tables"),
        ("balsam_core.system.logs", "from ..dbdir.directory import DBDir"),
        ("balsam_core.plugin", "NAMES = {'x': 'balsam_core.client.database'}"),
        ("balsam_core.plugin", "ENTRY = 'balsam_core.cli:main'"),
        ("balsam_core.launcher.loop", "from balsam_core import open_db"),
        ("balsam_core.cli.main", "from balsam_core.testing import suite"),
        ("balsam_core.backends.registry", "import balsam_sqlite.backend"),
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
        ("balsam_core.transport.native", "'''balsam_core.client'''\nTEXT = 'see balsam_core.client for more'"),
        ("balsam_core.testing.suite", "from balsam_core import cli, open_db"),
        ("balsam_core.proxy.client.exchange", "from balsam_core.transport.base import Transport"),
    ],
)
def test_downward_imports_are_not_blamed(module, source):
    assert floor_faults(source, module) == []


@pytest.mark.parametrize(
    "source",
    [
        "from balsam_core import open_db",
        "import balsam_core.transport.native",
        "def f():\n    from balsam_core.plugin_types import DBType",
        "import balsam_mysql",
    ],
)
def test_other_ways_are_found_in_plugins(source):
    assert len(plugin_faults(source, "balsam_sqlite.backend")) == 1


def test_public_api_is_allowed():
    source = "from balsam_core import plugin\nfrom balsam_core.plugin import DBType\nfrom balsam_sqlite import engine"
    assert plugin_faults(source, "balsam_sqlite.backend") == []
