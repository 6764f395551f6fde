"""The ``balsam`` program as a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

TIMEOUT = 120.0  # seconds, on a busy machine


class Result(NamedTuple):
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401
        """The output as JSON."""
        return json.loads(self.out)

    @property
    def ids(self) -> list[int]:
        """The output as ids."""
        return [int(line) for line in self.out.split()]

    @property
    def error(self) -> str:
        """The line of a command that failed with an error of Balsam's, without ``Error: ``."""
        assert self.code, self
        assert self.err.startswith("Error: "), self
        assert self.err.count("\n") == 1, self
        assert self.err.endswith("\n"), self
        return self.err.removeprefix("Error: ").removesuffix("\n")


class Program:
    """Runs ``balsam WORDS``: appends the words to a command, and adds ``env`` to the environment."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | PathLike[str] | None = None
    ) -> None:
        self.argv = list(argv)
        self._env = dict(env or {})
        self._cwd = cwd

    def __call__(
        self,
        *words: object,
        db: str | PathLike[str] | None = None,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run it with these words, input and environment, and ``db`` as the DB in use; return how it ended."""
        chosen = {} if db is None else {"BALSAM_DB_PATH": str(db)}
        return self._run([str(word) for word in words], {**self._env, **chosen, **(env or {})}, stdin)

    def good(self, *words: object, **settings: Any) -> Result:  # noqa: ANN401
        """Run it; it must succeed."""
        result = self(*words, **settings)
        assert result.code == 0, result
        return result

    def refused(self, *words: object, code: int | None = None, **settings: Any) -> str:  # noqa: ANN401
        """Run it; it must fail with one line and no output. Returns the line without ``Error: ``.

        The exit code is ``code``, or any but 0 and 1, which an unexpected exception has.
        """
        result = self(*words, **settings)
        assert result.code not in {0, 1} if code is None else result.code == code, result
        assert result.out == "", result
        return result.error

    def _run(self, words: list[str], env: Mapping[str, str], stdin: str) -> Result:
        process = subprocess.run(
            [*self.argv, *words],
            input=stdin.encode(),
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, **env},
            cwd=self._cwd,
        )
        return Result(process.returncode, process.stdout.decode(), process.stderr.decode())


balsam = Program([sys.executable, "-m", "balsam_core.cli"])
