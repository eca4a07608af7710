"""A click group that knows its commands by name and imports each only when it runs."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from safeflux.errors import SafeFluxError


class CleanError(click.ClickException):
    """One of our own errors, printed as it is: its message already says where, and its places stay clickable."""

    def __init__(self, error: SafeFluxError) -> None:
        super().__init__(str(error))

    def show(self, file: Any = None) -> None:
        """Print the message to stderr, without a traceback."""
        click.echo(f"error: {self.message}", file=file, err=file is None)


class LazyGroup(click.Group):
    """A group over a table `name -> (module, attribute, short help)`.

    The group's own help is printed from the table. A `SafeFluxError` that a command raises ends in its message and exit
    code 1; any other exception is a defect of ours and keeps its traceback.
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = dict(table)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table: what a newcomer needs first stands first."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or None for a name that is not in the table."""
        if cmd_name not in self.table:
            return None
        module, attribute, _ = self.table[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the table's short help; click's own way would import them all."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name][2]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; our own errors become one clean message."""
        try:
            return super().invoke(ctx)
        except SafeFluxError as error:
            raise CleanError(error) from error
