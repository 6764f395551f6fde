"""The ``balsam`` command line. May import everything below; nothing below imports it.

``root.SECTIONS`` lists the commands, so that only the module of the one that runs is imported, and ``balsam --help``
imports none. Each is a function in a module of its name, such as ``commands/dep.py``, decorated with ``command``, which
adds ``--db``, ``-o`` and ``-v``. Errors of :mod:`balsam_core.errors` become one line and an exit code.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

INTERRUPTED = 130  # as a shell counts: 128 + SIGINT
NO_RESOURCES = 6  # exit code of errors.NoResources, which perhaps can't be imported


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``args`` follow ``balsam``, None for those of this process."""
    try:
        from balsam_core.cli.invocation import main as run

        return run(args)
    except KeyboardInterrupt:  # while the program is loaded
        return INTERRUPTED
    except (OSError, ImportError) as err:
        texts = [os.strerror(number) for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)]
        if not any(text in str(err) for text in texts):
            raise
        sys.stderr.write(f"Error: the program can't be loaded ({str(err).lower()}): check its limits (ulimit -a)\n")
        return NO_RESOURCES
