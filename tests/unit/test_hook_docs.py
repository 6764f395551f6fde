"""The reference of the hooks says what the code says: the page is current, and read on its own it agrees."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from balsam_core.hookspecs import backend, mpi
from balsam_core.plugin import DBType, MPIKind, ServerPlan

DOCS = Path(__file__).parents[2] / "docs"
HOOKS = {name: (kind, getattr(kind, name)) for kind in (backend, mpi) for name in kind.__all__ if name[:7] == "balsam_"}


@pytest.fixture(scope="module")
def documented():
    """Hook -> (its section's title, signature, text)."""
    found = {}
    for section in re.split(r"^## ", (DOCS / "reference" / "hooks.md").read_text(), flags=re.MULTILINE)[1:]:
        title, _, rest = section.partition("\n")
        for part in re.split(r"^### ", rest, flags=re.MULTILINE)[1:]:
            name, _, text = part.partition("\n")
            signature = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
            found[name.strip("`")] = (title, signature[1] if signature else "", text)
    return found


def test_the_reference_of_the_hooks_is_current():
    spec = spec_from_file_location("generate_hooks", DOCS / "generate_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    generator = module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text() == generator.page(), f"{generator.PAGE} is out of date: run make docs"


def test_every_hook_is_documented_and_no_other(documented):
    assert {name for name in documented if name.startswith("balsam_")} == set(HOOKS)
    assert set(HOOKS) >= backend.OPTIONAL


@pytest.mark.parametrize("name", HOOKS)
def test_arguments_result_and_duty_are_those_of_the_code(documented, name):
    title, signature, text = documented[name]
    kind, hook = HOOKS[name]
    of_backend = f"{'Optional' if name in kind.OPTIONAL else 'Required'} hooks of a backend"
    assert title == (of_backend if kind is backend else "Hook of an MPI kind")
    of_code = inspect.signature(hook)
    assert signature.startswith(f"{name}(")
    assert signature.endswith(f") -> {of_code.return_annotation}")
    arguments = [f"{one.name}: {one.annotation}" for one in of_code.parameters.values()]
    assert signature == f"{name}({', '.join(arguments)}) -> {of_code.return_annotation}"
    for argument in of_code.parameters:
        assert f"\n* `{argument}`: " in text, f"{argument} of {name} is not explained"
    assert "```python\n@hookimpl\n" in text, f"{name} has no example"


@pytest.mark.parametrize("kind", [DBType, MPIKind, ServerPlan])
def test_every_field_of_the_values_is_documented(documented, kind):
    text = documented[kind.__name__][2]
    for field in fields(kind):
        assert f"\n* `{field.name}`: " in text


def test_the_static_check_of_modules_knows_the_required_hooks():
    required = {name for name, (kind, _) in HOOKS.items() if kind is backend} - backend.OPTIONAL
    assert {name for name in vars(backend.BackendModule) if name.startswith("balsam_")} == required
    for name in required:
        of_module = [one for one in inspect.signature(getattr(backend.BackendModule, name)).parameters if one != "self"]
        assert of_module == list(inspect.signature(HOOKS[name][1]).parameters)
