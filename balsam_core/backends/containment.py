"""Undoing what the import of a plugin has changed in the process, so that it harms no other plugin.

Only for listings, which load all plugins one after the other: an ordinary command loads only the one that it needs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LISTS = ((sys, "path"), (sys, "path_hooks"), (sys, "meta_path"), (sys, "argv"), (warnings, "filters"))
_VALUES = ((sys, "stdin"), (sys, "stderr"), (sys, "excepthook"), (threading, "excepthook"))


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Run the block with stdout redirected to stderr, and restore the state of the process afterwards.

    Restored are: environment, current directory, umask, recursion limit, the lists and hooks of ``sys``, the filters of
    ``warnings``, and the root logger. Signal handlers need no care: a listing loads plugins in a thread, which can't
    set any.
    """
    environment = dict(os.environ)
    directory = _current_directory()
    umask = os.umask(0o077)
    os.umask(umask)
    limit = sys.getrecursionlimit()
    lists = [(owner, name, getattr(owner, name), list(getattr(owner, name))) for owner, name in _LISTS]
    values = [(owner, name, getattr(owner, name)) for owner, name in _VALUES]
    root = logging.getLogger()
    level, handlers, disabled = root.level, list(root.handlers), logging.root.manager.disable
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for owner, name, value in values:
            setattr(owner, name, value)
        for owner, name, found, content in lists:
            found[:] = content
            setattr(owner, name, found)
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
        if directory is not None and _current_directory() != directory:
            os.chdir(directory)
        os.umask(umask)
        sys.setrecursionlimit(limit)
        root.setLevel(level)
        root.handlers[:] = handlers
        logging.disable(disabled)


def _current_directory() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109  (no path is needed)
    except OSError:  # it was removed
        return None
