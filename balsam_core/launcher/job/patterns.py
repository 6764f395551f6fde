"""Names and shell patterns with which a job chooses files."""

from __future__ import annotations

import re
from fnmatch import translate
from typing import TYPE_CHECKING

from balsam_core.launcher.job.outputs import is_log
from balsam_core.model.text import check_patterns

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class Patterns:
    """Names and shell patterns of files.

    As in a shell, a leading dot must be matched by a dot. A pattern without any letter or digit, such as ``*``, means
    "all results": it leaves out the files that launchers wrote.

    Attributes:
        unmatched: The patterns that no file has matched so far.

    Raises:
        InvalidInput: A pattern names a file in another directory; the message names the field ``what``.
    """

    def __init__(self, patterns: Sequence[str], *, what: str) -> None:
        self.unmatched = dict.fromkeys(patterns)
        self._tests: list[tuple[str, re.Pattern[str], bool, bool]] = []
        check_patterns(what, patterns)
        for pattern in patterns:
            named = any(c.isalnum() for c in pattern)
            self._tests.append((pattern, re.compile(translate(pattern)), pattern.startswith("."), named))

    def match(self, name: str, logs: Collection[str] = ()) -> bool:
        """Whether a file is wanted; ``logs`` are the names of files that a launcher wrote."""
        hidden = name.startswith(".")
        log = is_log(name, logs)
        matches = False
        for pattern, test, dotted, named in self._tests:
            if (dotted or not hidden) and (named or not log) and test.match(name) is not None:
                self.unmatched.pop(pattern, None)
                matches = True
        return matches
