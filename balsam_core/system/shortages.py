"""Errors of the system that say nothing of the file they name: too many are open, memory is short, a disk fails."""

from __future__ import annotations

import errno
import os

from balsam_core.errors import NoResources

_REMEDIES = {
    errno.EMFILE: "this process may have no more files open: raise its limit (ulimit -n)",
    errno.ENFILE: "the system has too many files open: end other programs, or ask its administrator",
    errno.ENOMEM: "there is not enough memory: end other programs, or use another machine",
    errno.EIO: "the disk or the file system reports an error: check it",
    errno.ESTALE: "the network file system has lost the file: repeat it, or mount it anew",
}
PASSING = frozenset(_REMEDIES)
"""Their numbers: the same may succeed later."""


def shortage(err: BaseException) -> NoResources | None:
    """Return the error for one that such a shortage has caused, also at an import; None for any other.

    An import that fails for want of a descriptor raises OSError, or, for a library, ImportError with the system's text.
    """
    seen: BaseException | None = err
    for _ in range(10):
        if seen is None:
            return None
        number = getattr(seen, "errno", None) if isinstance(seen, OSError) else None
        if isinstance(seen, MemoryError):
            number = errno.ENOMEM
        elif isinstance(seen, ImportError):
            number = next((one for one in PASSING if os.strerror(one) in str(seen)), None)
        if number in PASSING:
            return NoResources(f"{_REMEDIES[number]} ({os.strerror(number).lower()})")
        seen = seen.__cause__ or seen.__context__
    return None
