"""Who imports whom, read from the sources: for the layering test and for the picture in the documentation.

Nothing is imported. The table of floors stands here, too.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "balsam_core"

# The packages, and the modules that stand beside them, from the top floor down. Neighbours don't know each other.
FLOORS = [
    {"cli"},
    {"launcher", "service", "reports"},
    {"client"},
    {"admin"},
    {"watchdog"},
    {"backends"},
    {"plugin"},
    {"hookspecs"},
    {"proxy"},
    {"transport"},
    {"operations", "dbdir"},
    {"schema", "plugin_types"},
    {"model"},
    {"system"},
    {"errors", "version"},
]
FLOOR_OF = {name: -number for number, names in enumerate(FLOORS) for name in names}
TO_COME = {"service", "reports"}
# May use every floor, and no floor uses them: the public API for users' code, and the conformance suite.
ABOVE_ALL = {"__init__", "testing"}
# What the package itself says about itself, without opening a module.
OF_THE_PACKAGE = {"__version__", "__all__"}


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
    """Return the package or module directly in balsam_core that a dotted name belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"
