"""The ``balsam`` command line. May import everything below; nothing below imports it.

``root.SECTIONS`` lists the commands, so that only the module of the one that runs is imported, and ``balsam --help``
imports none. Each is a function in a module of its name, such as ``commands/dep.py``, decorated with ``command``, which
adds ``--db``, ``-o`` and ``-v``. Errors of :mod:`balsam_core.errors` become one line and an exit code.
"""

from __future__ import annotations

from balsam_core.cli.invocation import main

__all__ = ["main"]
