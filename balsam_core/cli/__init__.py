"""The ``balsam`` command line. May import everything below; nothing below imports it.

``root.COMMANDS`` lists the commands, so that only the module of the one that runs is imported, and ``balsam --help``
imports none. The command ``hello`` is a function in ``commands/hello.py``::

    import click
    from balsam_core.cli.command import Session, command, pass_session

    @command(examples=["balsam hello 12"])
    @click.argument("job")
    @pass_session
    def hello(session: Session, job: str) -> None:
        with session.open_db() as db:
            ...

``command`` adds ``--db``, ``-o`` and ``-v``; errors of :mod:`balsam_core.errors` become one line and an exit code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        args: The words after ``balsam``; None for those of this process.
    """
    from balsam_core.cli.invocation import run

    return run(args)
