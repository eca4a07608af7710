"""Click groups that import commands lazily, name the exit codes in each help, and suggest the nearest command."""

import difflib
import errno
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from itertools import pairwise
from typing import Any

import click
from click.shell_completion import CompletionItem

from safeflux.errors import SafeFluxError, StoreError

EXIT_CODES = (
    "Exit codes: 0 success; 1 error or failed check (invalid, relaxed, unguarded); 2 usage error; "
    "3 could not check (missing, unreadable, offline); 130 interrupted."
)
COULD_NOT_CHECK = 3
_MAY_BE_EMPTY = ("--prompt", "--password")
_GIVEN_NOTHING = re.compile(r"--[a-z-]+=")
_INTERRUPTED = 130


def exit_code(error: BaseException | None) -> int:
    """3 if something required is missing, cannot be read or written, or is not installed; else 1."""
    while error is not None:
        if isinstance(error, OSError | ImportError | StoreError):
            return COULD_NOT_CHECK
        error = error.__cause__
    return 1


class CleanError(click.ClickException):
    """One of our own errors, printed unchanged: its message has the place, which terminals can link to."""

    def __init__(self, error: SafeFluxError) -> None:
        super().__init__(str(error))

    def show(self, file: Any = None) -> None:
        """Print the message to stderr, without a traceback."""
        click.echo(f"error: {self.message}", file=file, err=file is None)


class UnavailableError(CleanError):
    """One of our own errors about something missing or unreadable."""

    exit_code = COULD_NOT_CHECK


class Group(click.Group):
    """A group whose commands name the exit codes in their help, and that suggests the nearest command."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, with the exit codes in its help, above the examples."""
        command = self.find(ctx, cmd_name)
        if command and EXIT_CODES not in (command.epilog or ""):
            command.epilog = f"{EXIT_CODES}\n\n{command.epilog}" if command.epilog else EXIT_CODES
        return command

    def find(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command as it was defined."""
        return super().get_command(ctx, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown name, suggest the nearest known one, of this group or of another."""
        name = args[0]
        if not (ctx.resilient_parsing or name.startswith("-")) and self.get_command(ctx, name) is None:
            ctx.fail(f"No such command {name!r}; {self._suggestion(ctx, name)}")
        return super().resolve_command(ctx, args)

    def _suggestion(self, ctx: click.Context, name: str) -> str:
        names, paths = self.list_commands(ctx), list(_paths(ctx.find_root(), "safeflux"))
        near = difflib.get_close_matches(name, [*names, *(path.rpartition(" ")[2] for path in paths)], n=1)
        if not near:
            return f"known: {', '.join(names)}"
        alike = [path for path in paths if path.rpartition(" ")[2] == near[0]]
        found = near if near[0] in names else sorted(alike, key=lambda path: path.count(" "))
        return f"did you mean {' or '.join(map(repr, found))}?"


class LazyGroup(Group):
    """The top-level group, made from a table `name -> (module, attribute, short help)`.

    The group's own help is printed from the table. A `SafeFluxError`, and what the system refuses of a file, becomes
    one message and an exit code; any other exception is a bug of ours and keeps its traceback.
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = dict(table)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table: first what a newcomer needs first."""
        return list(self.table)

    def find(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the command, or None for a name that is not in the table."""
        if name not in self.table:
            return None
        module, attribute, _ = self.table[name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the table's short help; click itself would import them all."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name][2]) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; refuse empty arguments, which would mean "not given" or the current folder."""
        if not ctx.resilient_parsing and (place := _empty(args)) is not None:
            ctx.fail(f"{place}: expected a value, got an empty text; is a variable of the shell not set?")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands from the table, since click itself would import them all; then options."""
        names = [CompletionItem(name, help=row[2]) for name, row in self.table.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; characters that the terminal cannot encode are printed as question marks."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="replace")
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; our own errors and interrupts become one clean message."""
        try:
            with (ctx.obj or nullcontext)():
                return super().invoke(ctx)
        except SafeFluxError as error:
            raise (UnavailableError if exit_code(error) == COULD_NOT_CHECK else CleanError)(error) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of stdout closed it, as `head` does
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter's last flush would fail
                ctx.exit(COULD_NOT_CHECK)
            if error.errno is None:  # raised by a library
                raise
            raise UnavailableError(_refusal(error)) from error
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            ctx.exit(_INTERRUPTED)


def _refusal(error: OSError) -> SafeFluxError:
    """What the system refuses, such as a name that is too long or a byte on a full disk, and the way out."""
    place = f"{error.filename}: " if error.filename else ""
    return SafeFluxError(
        f"{place}{error.strerror}; check the path, its permissions and the free space, or choose another"
    )


def _empty(args: Sequence[str]) -> str | None:
    """The place of the first argument that is empty and may not be; None if there is none."""
    for before, text in pairwise(("", *args)):
        option = before if text == "" else text[:-1] if _GIVEN_NOTHING.fullmatch(text) else None
        if option is not None and option not in _MAY_BE_EMPTY:
            return option if option.startswith("-") else f"the argument after {option!r}" if option else "the command"
    return None


def _paths(ctx: click.Context, path: str) -> Iterator[str]:
    """Every command below a group, as it is typed; all of them are imported."""
    group = ctx.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(ctx):
        yield f"{path} {name}"
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield from _paths(click.Context(command, info_name=name, parent=ctx), f"{path} {name}")
