"""Finding the program that a command line names, and explaining why it can't run."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

from balsam_core.system.files import reason

if TYPE_CHECKING:
    from pathlib import Path

MOST_REMEMBERED = 1000  # programs


def find_program(
    argv: list[str], search_path: str, cwd: Path, found: dict[tuple[str, str], str]
) -> tuple[str, list[str]]:
    """Return the file to run, for a process that has ``cwd`` as its directory, and its command line.

    A Python script that is not executable is run by this Python. What is found in ``search_path``, a ``PATH``, is
    remembered in ``found``, by name and ``PATH``.

    Raises:
        OSError: There is no such program.
    """
    name = argv[0]
    if "/" in name:
        if name.endswith(".py"):
            file = os.path.join(cwd, name)  # noqa: PTH118
            if os.path.isfile(file) and not os.access(file, os.X_OK):  # noqa: PTH113
                return sys.executable, [sys.executable, *argv]
        return name, argv
    program = found.get((name, search_path))
    if program is not None:
        return program, argv
    for folder in search_path.split(os.pathsep):
        path = os.path.join(folder, name)  # noqa: PTH118  (an empty entry is the current directory)
        file = os.path.join(cwd, path)  # noqa: PTH118
        if os.path.isfile(file) and os.access(file, os.X_OK):  # noqa: PTH113
            if not path.startswith("/"):
                return path if "/" in path else f"./{path}", argv
            if len(found) >= MOST_REMEMBERED:
                found.clear()
            found[name, search_path] = path
            return path, argv
    if name.endswith(".py") and os.path.isfile(os.path.join(cwd, name)):  # noqa: PTH113, PTH118
        return sys.executable, [sys.executable, *argv]
    raise OSError(errno.ENOENT, f"can't run {name!r}: there is no such program in PATH")


def explain_failure(program: str, cwd: Path, err: OSError) -> str:
    """Return why the system refused to run a program for a process that has ``cwd`` as its directory."""
    what, file = f"can't run {program!r}", os.path.join(cwd, program)  # noqa: PTH118
    if err.errno == errno.ENOENT and os.path.lexists(file):
        return f"{what}: the interpreter that its first line names is missing"
    if err.errno == errno.ENOEXEC:
        return f"{what}: no program; a script needs a first line such as #!/bin/sh"
    if err.errno == errno.EACCES and os.path.isfile(file):  # noqa: PTH113
        return f"{what}: it is not executable (chmod +x)"
    return f"{what}: {reason(err)}"
