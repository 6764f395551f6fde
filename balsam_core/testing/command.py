"""The one command: ``python -m balsam_core.testing DBTYPE [--option NAME=VALUE]... [pytest's arguments]``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core.backends import registry
from balsam_core.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
USAGE = """\
usage: python -m balsam_core.testing DBTYPE [--option NAME=VALUE]... [PYTEST ARGUMENTS]

Says whether the installed backend of a db type keeps Balsam's contract: exits with 0 if it does, with 1 if a test
fails. Everything happens in a temporary directory, of which nothing is left.

  --option NAME=VALUE   an option of the backend for every DB that is made, as of balsam init; may be repeated
  PYTEST ARGUMENTS      e.g. -x (stop at the first failure), -k claim (some tests), -v (each test's name)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        sys.stdout.write(USAGE)
        return 0 if words else 2
    if words[0].startswith("-"):
        return _refuse(f"the first argument is the db type, not {words[0]}; see --help")
    for package in ("pytest", "pytest_timeout"):
        if find_spec(package) is None:
            return _refuse(f"{package} is not installed; run: pip install 'balsam-core[testing]'")
    try:
        registry.load(words[0])
    except BackendError as err:
        return _refuse(str(err))
    import pytest

    code = pytest.main(
        [
            # Neither settings nor plugins of the folder where the command is run.
            *("-c", str(HERE / "pytest.ini"), "--rootdir", str(HERE / "suite")),
            *("-p", "no:cacheprovider", "-p", "balsam_core.testing.fixtures"),
            *("--db-type", registry.canonical(words[0])),
            *words[1:],
            *([] if _names_tests(words[1:]) else [str(HERE / "suite")]),
        ]
    )
    return int(code != pytest.ExitCode.OK)


def _names_tests(words: Sequence[str]) -> bool:
    return any(Path(word.split("::")[0]).suffix == ".py" for word in words)


def _refuse(why: str) -> int:
    sys.stderr.write(f"balsam_core.testing: {why}\n")
    return 1
