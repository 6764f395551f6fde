"""The real ``balsam`` program as a child process, with warnings as errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT = 120.0  # seconds, on a busy machine


class Done(NamedTuple):
    """What a run of the program left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output as JSON."""
        return json.loads(self.out)

    @property
    def ids(self) -> list[int]:
        """The output as ids."""
        return [int(line) for line in self.out.split()]


def balsam(
    *words: str | Path, db: str | Path | None = None, stdin: str = "", env: dict[str, str] | None = None
) -> Done:
    """Run ``balsam WORDS`` and return how it ended."""
    variables = {**os.environ, **(env or {})}
    if db is not None:
        variables["BALSAM_DB_PATH"] = str(db)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "balsam_core.cli", *map(str, words)],
        input=stdin.encode(),
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
        env=variables,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def good(
    *words: str | Path, db: str | Path | None = None, stdin: str = "", env: dict[str, str] | None = None
) -> Done:
    """Run ``balsam WORDS``, which must succeed."""
    done = balsam(*words, db=db, stdin=stdin, env=env)
    assert done.code == 0, done.err
    return done


def refused(
    *words: str | Path, code: int, db: str | Path | None = None, stdin: str = "", env: dict[str, str] | None = None
) -> str:
    """Run ``balsam WORDS``, which must fail with this exit code and one line; return the line without ``Error: ``."""
    done = balsam(*words, db=db, stdin=stdin, env=env)
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("Error: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.endswith("\n")
    return done.err.removeprefix("Error: ").rstrip("\n")
