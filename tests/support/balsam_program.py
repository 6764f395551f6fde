"""The ``balsam`` program: as a child process with warnings as errors, or, ten times as fast, in this process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Mapping
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


class Program:
    """Runs ``balsam WORDS``; ``db`` is what ``BALSAM_DB_PATH`` says.

    Args:
        child: Whether it runs as a process of its own.
    """

    def __init__(self, *, child: bool) -> None:
        self._child = child

    def __call__(
        self,
        *words: object,
        db: str | Path | None = None,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run it and return how it ended."""
        texts = [str(word) for word in words]
        variables = {} if db is None else {"BALSAM_DB_PATH": str(db)}
        variables.update(env or {})
        return _in_a_child(texts, variables, stdin) if self._child else _in_here(texts, variables, stdin)

    def good(self, *words: object, **settings: Any) -> Done:
        """Run it; it must succeed."""
        done = self(*words, **settings)
        assert done.code == 0, done.err
        return done

    def refused(self, *words: object, code: int, **settings: Any) -> str:
        """Run it; it must fail with this exit code and one line. Returns the line without ``Error: ``."""
        done = self(*words, **settings)
        assert (done.code, done.out) == (code, ""), done
        assert done.err.startswith("Error: "), done.err
        assert done.err.count("\n") == 1, done.err
        assert done.err.endswith("\n")
        return done.err.removeprefix("Error: ").rstrip("\n")


here = Program(child=False)
child = Program(child=True)


def _in_a_child(words: list[str], variables: Mapping[str, str], stdin: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "balsam_core.cli", *words],
        input=stdin.encode(),
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
        env={**os.environ, **variables},
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def _in_here(words: list[str], variables: Mapping[str, str], stdin: str) -> Done:
    from balsam_core.cli import main

    inside, out, err = io.BytesIO(stdin.encode()), io.BytesIO(), io.BytesIO()
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch("sys.stdin", io.TextIOWrapper(inside, "utf-8")),
        mock.patch("sys.stdout", io.TextIOWrapper(out, "utf-8")),
        mock.patch("sys.stderr", io.TextIOWrapper(err, "utf-8", write_through=True)),
    ):
        code = main(words)
        return Done(code, out.getvalue().decode(), err.getvalue().decode())
