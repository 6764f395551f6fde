"""One log file per run of a program: dated in UTC, rotated, private to the user.

For entry points only: a library never configures handlers. The file's name lets many hosts share one folder. When root
logs into another user's folder, no symbolic link of that user can lead it elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import sys
import time
from typing import TYPE_CHECKING

from balsam_core.errors import DBDirError
from balsam_core.system.files import give_to_owner, shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import TextIOWrapper
    from pathlib import Path

_MAX_BYTES = 10 * 1024 * 1024  # of a file before it is rotated
_KEPT_FILES = 5  # rotated ones, besides the current
_installed: list[logging.Handler] = []


def configure(
    log_dir: Path,
    name: str,
    *,
    level: int = logging.INFO,
    context: str = "",
    keep: int | None = None,
    number: int | None = None,
) -> Path:
    """Send this process's log records to a file of its own and return the file's path.

    A second call replaces the first one's file. The name is ``NAME_DATE_HOST_PID.log``, or ``NAME-NUMBER.log``.

    Args:
        log_dir: An existing directory.
        name: What runs, e.g. ``server``.
        level: Lowest level that is written.
        context: What every line carries for grep, e.g. ``port=4711``.
        keep: How many files of earlier runs to keep, for a program that runs once at a time; None for all.
        number: The number of this run, where each has one of its own.

    Raises:
        DBDirError: The folder is a link of another user's, and this is root.
        OSError: The file can't be made.
    """
    host = re.sub(r"[^A-Za-z0-9.-]", "-", platform.node())[:64] or "localhost"
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    folder = _open_folder(log_dir)
    if keep is not None:
        _remove_old_files(log_dir, name, keep)
    run = f"_{moment}_{host}_{os.getpid()}" if number is None else f"-{number}"
    path = log_dir / f"{name}{run}.log"

    def opener(path: str, flags: int) -> int:
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(os.path.basename(path), flags, 0o600, dir_fd=folder)  # noqa: PTH119  (the system's text)
        give_to_owner(descriptor, log_dir)
        return descriptor

    with contextlib.ExitStack() as stack:
        stack.callback(os.close, folder)
        try:
            os.close(opener(str(path), os.O_WRONLY | os.O_CREAT))
        except OSError as err:
            err.filename = str(path)
            raise
        handler = _make_handler(path, opener, stack.pop_all().close)
    handler.setFormatter(_OneLine(context))
    close()
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    _installed.append(handler)
    return path


def _open_folder(log_dir: Path) -> int:
    """Return a descriptor of the folder."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    is_foreign = os.geteuid() == 0 and log_dir.parent.stat().st_uid != 0
    try:
        return os.open(log_dir, flags | (os.O_NOFOLLOW if is_foreign else 0))
    except OSError:
        if is_foreign and log_dir.is_symlink():
            raise DBDirError(
                f"{shown(log_dir)} is a symbolic link of another user's, which root doesn't follow: make it a folder"
            ) from None
        raise


def _make_handler(path: Path, opener: Callable[[str, int], int], on_close: Callable[[], None]) -> logging.Handler:
    from logging.handlers import RotatingFileHandler

    class File(RotatingFileHandler):
        def _open(self) -> TextIOWrapper:
            return open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=opener)

        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
            # Of a full or broken disk the program itself says what it means; a traceback for each record says less.
            if not isinstance(sys.exception(), OSError):
                super().handleError(record)

        def close(self) -> None:
            super().close()
            on_close()

    return File(
        path, maxBytes=_MAX_BYTES, backupCount=_KEPT_FILES, encoding="utf-8", errors="backslashreplace", delay=True
    )


def _remove_old_files(log_dir: Path, name: str, keep: int) -> None:
    """Remove the oldest files of a program; their names sort by date."""
    for old in sorted(log_dir.glob(f"{name}_*.log*"), reverse=True)[keep:]:
        with contextlib.suppress(OSError):
            old.unlink()


def current() -> str:
    """Return the name of this process's log file, empty for none."""
    return os.path.basename(getattr(_installed[-1], "baseFilename", "")) if _installed else ""  # noqa: PTH119


def close() -> None:
    """Close the log file, if one is open; later records go nowhere."""
    while _installed:
        handler = _installed.pop()
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk
            handler.close()


class _OneLine(logging.Formatter):
    """``2026-11-23T23:43:01.123Z INFO pid=4711 port=7 package.module: text``.

    A newline in the text is escaped, so that nobody can forge a record; tracebacks follow on indented lines.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, context: str) -> None:
        origin = " ".join(["pid=%(process)d", *context.replace("%", "%%").split()])
        super().__init__(f"%(asctime)s %(levelname)s {origin} %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\n    ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        record.message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        return super().formatMessage(record)
