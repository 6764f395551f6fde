"""The one command: ``python -m balsam_core.testing DBTYPE [--option NAME=VALUE]... [pytest's arguments]``.

``python -m balsam_core.testing template DIR`` writes a complete small backend, from which authors begin.
"""

from __future__ import annotations

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core.backends import registry
from balsam_core.errors import BackendError, DBDirError
from balsam_core.system.files import expand, reason, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
USAGE = """\
usage: python -m balsam_core.testing DBTYPE [--option NAME=VALUE]... [PYTEST ARGUMENTS]
       python -m balsam_core.testing template DIR

Says whether the installed backend of a db type keeps Balsam's contract: exits with 0 if it does, with 1 if a test
fails. Everything happens in a temporary directory, of which nothing is left.

  --option NAME=VALUE   an option of the backend for every DB that is made, as of balsam init; may be repeated
  PYTEST ARGUMENTS      e.g. -x (stop at the first failure), -k claim (some tests), -v (each test's name)

With the word template: writes a complete small backend of the db type tiny to DIR, which must not exist, or be empty.
Change it into your own.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        sys.stdout.write(USAGE)
        return 0 if words else 2
    if words[0].startswith("-"):
        return _refuse(f"the first argument is the db type, not {words[0]}; see --help")
    if words[0] == "template":
        return _write_template(words[1:])
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


def _write_template(words: Sequence[str]) -> int:
    if len(words) != 1 or words[0].startswith("-"):
        return _refuse("template needs one argument, the folder to write to; see --help")
    source = HERE / "template"
    try:
        target = expand(words[0])
        if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
            return _refuse(f"{shown(target)} exists and is no empty folder: name another one; nothing was written")
        for file in sorted(path for path in source.rglob("*") if path.suffix in {".py", ".toml"}):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    except DBDirError as err:
        return _refuse(err.message)
    except OSError as err:
        return _refuse(f"the template can't be written to {shown(words[0])}: {reason(err)}")
    sys.stdout.write(
        f"wrote {shown(target)}: a backend of the db type tiny\n"
        f"install it with: pip install {shlex.quote(str(target))}\n"
        f"then test it with: python -m balsam_core.testing tiny\n"
    )
    return 0


def _names_tests(words: Sequence[str]) -> bool:
    return any(Path(word.split("::")[0]).suffix == ".py" for word in words)


def _refuse(why: str) -> int:
    sys.stderr.write(f"balsam_core.testing: {why}\n")
    return 1
