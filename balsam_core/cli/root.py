"""The root of the command line: the list of commands, known without importing their modules."""

from __future__ import annotations

from importlib import import_module

import click

from balsam_core.cli.command import KEEPS_STDOUT, Group, common_options
from balsam_core.version import __version__

# The command NAME is the function NAME in the module commands/NAME.py; its help begins with the sentence here.
SECTIONS = {
    "Databases": {
        "init": "Create a DB directory, or refresh an existing one.",
        "status": "Show which DB is used and how it stands.",
        "dbserver": "Start the server of a DB, or stop it.",
        "backup": "Save the DB in a file, while it is in use.",
        "restore": "Make a DB of what 'balsam backup' has saved in FILE.",
        "config": "Show the settings in force.",
        "plugins": "Show and check the installed plugins.",
    },
    "Jobs": {
        "app": "Define an app: a command that jobs run.",
        "job": "Add a job and print its id.",
        "run": "Add a job that runs a command line, and print its id.",
        "dep": "Make the job CHILD wait for the job PARENT.",
        "ls": "List jobs, apps or workflows.",
        "show": "Show everything about one job.",
        "explain": "Say why a job waits, or how it ended, and what to do about it.",
        "log": "Show what a job, a launcher or the server has written.",
        "kill": "Stop jobs for good, with those that wait for them.",
        "retry": "Start failed or killed jobs again.",
        "rm": "Remove jobs or apps.",
    },
    "Running": {
        "launcher": "Run jobs on this machine until none is left.",
    },
}
COMMANDS = {name: sentence for section in SECTIONS.values() for name, sentence in section.items()}


class Root(Group):
    """A group that imports the module of a command when the command is used.

    Besides its own commands there is a group for each database type with the commands that its plugin adds; a plugin
    can't replace a command.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the commands in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, importing its module; None where there is no such command."""
        if cmd_name not in COMMANDS:
            from balsam_core.cli.db_type_group import find_db_type_group

            return find_db_type_group(cmd_name, quiet=ctx.resilient_parsing)
        found: click.Command = getattr(import_module(f"balsam_core.cli.commands.{cmd_name}"), cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of the first word, the word and the rest; the error for a wrong word suggests others."""
        if args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        found = self.get_command(ctx, args[0])
        if found is None:
            from balsam_core.cli.text import quote
            from balsam_core.cli.values import similar

            ctx.fail(f"there is no command {quote(args[0])}{similar(args[0], COMMANDS)}")
        ctx.meta[KEEPS_STDOUT] = args[0] in COMMANDS  # a plugin's own commands may print
        return args[0], found, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands by section."""
        width = max(map(len, COMMANDS))
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), sentence) for name, sentence in section.items()])


root = Root(
    name="balsam",
    params=common_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=(
        "The ensemble-job database: create a DB, fill it with jobs, and let launchers run them.\n\n"
        "The DB is chosen by --db, else by the variable BALSAM_DB_PATH, else by default_db_path in settings.toml, "
        "else it is default_balsamdb, which is created on first use."
    ),
    epilog=(
        "'balsam COMMAND --help' tells more about a command; 'balsam TYPE --help' about those that the plugin of a "
        "database type adds."
    ),
)
click.version_option(__version__, message="balsam %(version)s", help="Show the version.")(root)
