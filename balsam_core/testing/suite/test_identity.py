"""What the backend says of itself, and what it costs to ask."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from balsam_core.testing import CAPABILITIES
from balsam_core.testing.cli import balsam

if TYPE_CHECKING:
    from balsam_core.backends.registry import Backend

LOADS = """
import sys
from balsam_core.backends import registry
identity = registry.load(sys.argv[1]).identity
heavy = {"sqlalchemy", "alembic", "zmq", *([identity.driver] if identity.driver else [])}
print(*sorted(heavy & set(sys.modules) - set(sys.builtin_module_names)))
"""


def test_it_is_listed_as_usable(backend: Backend) -> None:
    listed = balsam.good("plugins", "list", "-o", "json").json
    (row,) = [row for row in listed if row["name"] == backend.identity.name]
    assert (row["status"], row["server"]) == ("ok", backend.identity.server.value), row
    balsam.good("plugins", "check", backend.identity.name)


def test_its_import_loads_neither_driver_nor_sqlalchemy(backend: Backend) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADS, backend.identity.name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"import these in the functions that need them: {done.stdout}"


def test_its_capabilities_are_words_of_the_suite(backend: Backend) -> None:
    assert backend.identity.capabilities <= CAPABILITIES.keys(), f"the words are {sorted(CAPABILITIES)}"


def test_each_option_is_explained(backend: Backend) -> None:
    for name, text in backend.identity.options.items():
        assert name.replace("_", "").isalnum(), f"{name!r} is no word"
        assert text.strip(), f"the option {name} is not explained"
        assert "\n" not in text


def test_its_commands_show_their_help(backend: Backend) -> None:
    done = balsam(backend.identity.name, "--help")
    assert done.code in {0, 2}, done  # 2: it adds none
    assert "Traceback" not in done.err, done
