"""What all commands share: the session, and the options ``--db``, ``-o`` and ``-v`` before or after the command."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from balsam_core.cli.stdout import stdout_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balsam_core.cli.output import Printer
    from balsam_core.client.database import Database
    from balsam_core.dbdir.directory import DBDir

FORMATS = ("table", "json", "jsonl", "csv", "ids")
OUTPUT_VARIABLE = "BALSAM_OUTPUT"
DEBUG_VARIABLE = "BALSAM_DEBUG"
KEEPS_STDOUT = "balsam.keeps_stdout"
"""In the context's ``meta``: whether the command writes to stdout by a :class:`Printer` alone."""


class Session:
    """What the user asked for by the common options.

    Attributes:
        db: The path after ``--db``, None when it was not given.
        output: The format after ``-o``, None when it was not given.
        verbose: Whether tracebacks are wanted.
        owns_process: Whether the process ends with the command.
    """

    def __init__(self, *, owns_process: bool = False) -> None:
        self.owns_process = owns_process
        self.db: str | None = None
        self.output: str | None = None
        self.verbose = bool(os.environ.get(DEBUG_VARIABLE, "").strip("0 "))

    @property
    def format(self) -> str:
        """The output format: from ``-o``, else from ``BALSAM_OUTPUT``, else ``table``.

        Raises:
            click.UsageError: The variable holds no format.
        """
        if self.output is not None:
            return self.output
        chosen = os.environ.get(OUTPUT_VARIABLE, "").strip() or "table"
        if chosen not in FORMATS:
            raise click.UsageError(f"{OUTPUT_VARIABLE} is {chosen!r}; it can be one of: {', '.join(FORMATS)}")
        return chosen

    def printer(self) -> Printer:
        """Return what writes the results, in the chosen format."""
        from balsam_core.cli.output import Printer

        return Printer(self.format)

    def directory(self, db_type: str = "", *, create: bool = False) -> DBDir:
        """Return the chosen DB directory, without opening its database.

        Args:
            db_type: The db type that it must have; empty for any.
            create: Whether to create the default DB if that is chosen and not there.

        Raises:
            Conflict: It has another one.
            DBDirError: The directory is no usable DB.
        """
        from balsam_core.client.database import open_directory
        from balsam_core.errors import Conflict
        from balsam_core.system.files import shown

        found = open_directory(self.db, create=create)
        if db_type and found.db_type != db_type:
            raise Conflict(f"{shown(found.path)} is a DB of type {found.db_type}, not {db_type}: name another by --db")
        return found

    def open_db(self) -> Database:
        """Open the chosen DB; use it in a ``with`` statement."""
        from balsam_core.client.database import open_db

        return open_db(self.db)


pass_session = click.make_pass_decorator(Session, ensure=True)


class _CommonOption(click.Option):
    """An option that every command has; its value is kept in the session, not passed to the command's function."""

    def __init__(self, *names: str, attribute: str, **settings: Any) -> None:  # noqa: ANN401  (click's own settings)
        def keep_in_session(ctx: click.Context, _: click.Parameter, value: object) -> None:
            if value not in {None, False}:
                setattr(ctx.ensure_object(Session), attribute, value)

        # Eager: -o is known before an error in another option is printed.
        super().__init__(names, expose_value=False, is_eager=True, callback=keep_in_session, **settings)


def common_options() -> list[click.Option]:
    """Return new instances of the options that every command has."""
    return [
        _CommonOption("--db", attribute="db", metavar="PATH", help="The DB directory to use."),
        _CommonOption(
            "-o", "--output", attribute="output", type=click.Choice(FORMATS), metavar="FORMAT",
            help=f"How to print: {', '.join(FORMATS)}.",
        ),
        _CommonOption("-v", "--verbose", attribute="verbose", is_flag=True, help="Show tracebacks of errors."),
    ]  # fmt: skip


class Command(click.Command):
    """A command with the common options and ``examples``, command lines for the help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **settings)
        self.examples = tuple(examples)
        self.params.extend(common_options())

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  (as click)
        """Run the command, unless the output format is wrong: it must not change anything then."""
        session = ctx.ensure_object(Session)
        _ = session.format
        with stdout_kept(until_exit=session.owns_process) if ctx.meta.get(KEEPS_STDOUT) else nullcontext():
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, the common ones after the command's own, then the examples."""
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            help_line = param.get_help_record(ctx)
            if help_line is not None and isinstance(param, click.Option):
                (common if isinstance(param, _CommonOption) or param.name == "help" else own).append(help_line)
        for title, help_lines in (("Options", own), ("Common options", common)):
            if help_lines:
                with formatter.section(title):
                    formatter.write_dl(help_lines)
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Group(click.Group):
    """A command with subcommands. Without one it shows its help on stderr and exits with 2."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words up to the subcommand."""
        if not args and not ctx.resilient_parsing:  # click's versions differ here
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)


def command(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Command]:  # noqa: ANN401
    """Make a function a command: as ``click.command``, with the common options and ``examples=[...]``."""
    return click.command(name, cls=Command, **settings)


def group(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Group]:  # noqa: ANN401
    """Make a function a group of commands with the common options."""
    return click.group(name, cls=Group, **settings)
