"""The ``balsam`` command line. May import everything below; nothing below imports it.

``root.SECTIONS`` lists the commands, so that only the module of the one that runs is imported, and ``balsam --help``
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

from balsam_core.cli.invocation import main

__all__ = ["main"]
