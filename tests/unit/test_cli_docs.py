from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "generate_cli.py"


@pytest.fixture(scope="module")
def generator():
    spec = spec_from_file_location("generate_cli", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_the_command_line_is_current(generator):
    assert generator.PAGE.read_text() == generator.page(), f"{generator.PAGE} is out of date: run make docs"


def test_every_exit_code_is_explained(generator):
    assert [int(code) for code, _ in generator.exit_codes()] == [*range(14), 130, 141]
