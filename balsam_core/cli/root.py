"""The root of the command line: which commands there are and where they live, known without importing them."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

import click

from balsam_core.cli.command import Group, common_options

__all__ = ["COMMANDS", "CommandInfo", "root"]


class CommandInfo(NamedTuple):
    """Where a command lives and what the list of commands says of it.

    Attributes:
        module: Its module in this package; the command is the attribute of the command's name.
        help: The first sentence of the command's help; a test compares.
        section: The heading that it stands under.
    """

    module: str
    help: str
    section: str


COMMANDS: dict[str, CommandInfo] = {
    "init": CommandInfo("init", "Create a DB directory, or refresh an existing one.", "Databases"),
    "status": CommandInfo("status", "Show which DB is used and how it stands.", "Databases"),
    "dbserver": CommandInfo("dbserver", "Start the server of a DB, or stop it.", "Databases"),
    "backup": CommandInfo("backup", "Save the DB in a file, while it is in use.", "Databases"),
    "restore": CommandInfo("restore", "Make a DB of what 'balsam backup' has saved in FILE.", "Databases"),
    "config": CommandInfo("config", "Show the settings in force.", "Databases"),
    "plugins": CommandInfo("plugins", "Show and check the installed database types.", "Databases"),
    "app": CommandInfo("app", "Define an app: a command that jobs run.", "Jobs"),
    "job": CommandInfo("job", "Add a job and print its id.", "Jobs"),
    "run": CommandInfo("run", "Add a job that runs a command line, and print its id.", "Jobs"),
    "dep": CommandInfo("dep", "Make the job CHILD wait for the job PARENT.", "Jobs"),
    "ls": CommandInfo("ls", "List jobs, apps or workflows.", "Jobs"),
    "show": CommandInfo("show", "Show everything about one job.", "Jobs"),
    "kill": CommandInfo("kill", "Stop jobs for good, with those that wait for them.", "Jobs"),
    "retry": CommandInfo("retry", "Start failed or killed jobs again.", "Jobs"),
    "rm": CommandInfo("rm", "Remove jobs or apps.", "Jobs"),
    "launcher": CommandInfo("launcher", "Run jobs on this machine until none is left.", "Running"),
}


class Root(Group):
    """A group that imports a command's module when the command is used, and none to list them.

    Besides its own commands there is a group for each database type, with what the type's plugin adds; a plugin can't
    replace a command.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the commands in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, importing its module; None where there is no such command."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            from balsam_core.cli.plugin_commands import find_group

            return find_group(cmd_name, quiet=ctx.resilient_parsing)
        found: click.Command = getattr(import_module(f"balsam_core.cli.commands.{place.module}"), cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of the first word, the word and the rest; a wrong word brings up what may be meant."""
        if args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        found = self.get_command(ctx, args[0])
        if found is None:
            from balsam_core.cli.values import similar

            ctx.fail(f"there is no command {args[0][:60]!r}{similar(args[0], list(COMMANDS))}")
        return args[0], found, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands by section."""
        width = max(map(len, COMMANDS))
        for title in dict.fromkeys(place.section for place in COMMANDS.values()):
            with formatter.section(title):
                formatter.write_dl(
                    [(name.ljust(width), place.help) for name, place in COMMANDS.items() if place.section == title]
                )


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from balsam_core.version import __version__

        click.echo(f"balsam {__version__}")
        ctx.exit()


def _options() -> list[click.Parameter]:
    version = click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
    )
    return [*common_options(), version]


root = Root(
    name="balsam",
    params=_options(),
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
