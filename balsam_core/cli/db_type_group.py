"""``balsam TYPE COMMAND``: the commands that the plugin of a database type adds by its hook ``balsam_commands``.

Only the named plugin is loaded. Its errors are reported like those of other commands; an exception that is neither a
BalsamError nor click's is reported as a fault of the plugin.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from balsam_core.backends import registry
from balsam_core.backends.loading import describe_exception
from balsam_core.cli.command import Group
from balsam_core.cli.stdout import stdout_kept
from balsam_core.cli.text import printable
from balsam_core.errors import BackendError, BalsamError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.backends.registry import Backend


class DBTypeGroup(Group):
    """The commands of one plugin, named by the db type or alias that the user typed."""

    def __init__(self, name: str, backend: Backend) -> None:
        self._provider = printable(backend.provider)
        super().__init__(name, help=f"Commands for {backend.identity.title}, from {self._provider}.")

    def make_context(self, *args: Any, **settings: Any) -> click.Context:  # noqa: ANN401  (as click)
        """Parse the words up to the command; prints the help on request."""
        with self._plugin_errors():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> int:
        """Run the user's command and return the exit code: its return value, if that is a number."""
        with self._plugin_errors():
            code = super().invoke(ctx)
        return code if type(code) is int else 0

    @contextmanager
    def _plugin_errors(self) -> Iterator[None]:
        try:
            yield
        except (BalsamError, click.ClickException, click.Abort, click.exceptions.Exit, OSError):
            raise
        except Exception as err:
            raise BackendError(
                f"{self._provider} failed in balsam {self.name}: {describe_exception(err)}; tell the package's authors"
            ) from err


def find_db_type_group(word: str, *, quiet: bool = False) -> Group | None:
    """Return the commands of the plugin for a db type or alias; None where the word is neither.

    With ``quiet``, the answer is None for a plugin that can't be used, too.

    Raises:
        BackendError: The plugin is not installed or broken.
        click.UsageError: It has no commands.
    """
    name = registry.canonical(word)
    if name not in registry.OFFICIAL and name not in registry.installed().entry_points:
        return None
    try:
        with stdout_kept():  # until a command of the plugin runs
            backend = registry.load(word)
            if not backend.has("balsam_commands"):
                raise click.UsageError(f"{backend.provider} adds no commands for the db type {backend.identity.name}")
            group = DBTypeGroup(word, backend)
            backend.commands(group)
    except (BalsamError, click.UsageError):
        if quiet:
            return None
        raise
    return group
