"""What several commands share: a bar on stderr, and a check of the folder that they will write to."""

import os
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def writable(ctx: click.Context, parameter: click.Parameter, folder: Path | None) -> Path | None:
    """Refuse now what could not be written a minute later. Makes nothing: a run that fails leaves nothing behind."""
    if folder is None:
        return None
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise click.BadParameter(f"{nearest} is not a folder that can be written to", ctx, parameter)
    return folder


class Bar:
    """A bar on stderr, none where stderr is no terminal; and lines above it, which are there in any case."""

    def __init__(self, *, of_bytes: bool = False) -> None:
        amount = DownloadColumn() if of_bytes else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeElapsedColumn())
        self._console = Console(stderr=True)
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "Bar":
        """Show it."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take it away."""
        self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say what is being done, how much of it is done, and of how much."""
        self._bar.update(self._task, description=what, completed=done, total=total)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False, soft_wrap=True)
