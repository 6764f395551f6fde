"""The guide for authors of backends says what the code says."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path

from balsam_core import plugin, testing
from balsam_core.hookspecs import backend as hookspecs
from balsam_core.plugin_types import DBType
from balsam_core.proxy.single_writer import SingleWriter
from balsam_core.testing import CAPABILITIES, suite

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "write-a-backend.md").read_text()
TEMPLATE = Path(testing.__file__).parent / "template"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def test_the_template_is_tiny() -> None:
    files = [TEMPLATE / "pyproject.toml", *TEMPLATE.glob("balsam_tiny/*.py")]
    assert sum(bool(line.strip()) for file in files for line in file.read_text().splitlines()) <= 150


def test_snippets_are_the_templates_or_use_the_public_api() -> None:
    texts = [file.read_text() for file in (TEMPLATE / "pyproject.toml", *TEMPLATE.glob("balsam_tiny/*.py"))]
    for language, block in BLOCKS:
        if language == "console" or any(block in text for text in texts):
            continue
        assert language == "python", block
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), block


def test_every_hook_is_in_the_table() -> None:
    named = dict(re.findall(r"^\| `(balsam_\w+)` \| (required|optional)", GUIDE, re.MULTILINE))
    hooks = {name for name, one in vars(hookspecs).items() if name.startswith("balsam_") and inspect.isfunction(one)}
    assert named == {name: "optional" if name in hookspecs.OPTIONAL else "required" for name in hooks}


def test_every_part_of_the_suite_is_explained() -> None:
    modules = {path.stem for path in Path(suite.__file__).parent.glob("test_*.py")}
    assert set(re.findall(r"^\| `(test_\w+)` \|", GUIDE, re.MULTILINE)) == modules


def test_capabilities_and_fields_are_explained() -> None:
    assert set(re.findall(r"^\* `([\w-]+)`: ", GUIDE, re.MULTILINE)) == set(CAPABILITIES)
    words = set(re.findall(r"\w+", GUIDE))
    for kind in (DBType, SingleWriter):
        assert {field.name for field in dataclasses.fields(kind)} <= words


def test_what_it_names_of_the_public_api_is_there() -> None:
    for name in re.findall(r"^\| `([A-Z]\w+)` \|", GUIDE, re.MULTILINE):
        assert issubclass(getattr(plugin, name), plugin.BalsamError)
    helpers = """
        ServerAccount ServerConnector failure_reason local_host make_certificate option_choice option_value private_file
        read_password refuse_while_served seconds_left server_not_running store_password write_private
    """
    for name in helpers.split():
        assert re.search(rf"`[^`]*\b{name}\b", GUIDE), name
        assert hasattr(plugin, name)
