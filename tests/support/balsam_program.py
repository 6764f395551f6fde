"""The ``balsam`` program: as a child process with warnings as errors, or, ten times as fast, in this process."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING
from unittest import mock

from balsam_core.testing.cli import TIMEOUT, Program, Result

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BALSAM", "TIMEOUT", "Program", "Result", "child", "here"]

BALSAM = [sys.executable, "-W", "error", "-m", "balsam_core.cli"]


class ProgramHere(Program):
    """Runs ``balsam WORDS`` in this process."""

    def __init__(self) -> None:
        super().__init__([])

    def _run(self, words: list[str], env: Mapping[str, str], stdin: str) -> Result:
        from balsam_core.cli import main

        inside, out, err = io.BytesIO(stdin.encode()), io.BytesIO(), io.BytesIO()
        with (
            mock.patch.dict(os.environ, env),
            mock.patch("sys.stdin", io.TextIOWrapper(inside, "utf-8")),
            mock.patch("sys.stdout", io.TextIOWrapper(out, "utf-8")),
            mock.patch("sys.stderr", io.TextIOWrapper(err, "utf-8", write_through=True)),
        ):
            code = main(words)
            return Result(code, out.getvalue().decode(), err.getvalue().decode())


here = ProgramHere()
child = Program(BALSAM)
