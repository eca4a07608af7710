"""What several commands share: options, a progress bar on stderr, and a check of the folder that they will write to."""

import inspect
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from safeflux.cli._completion import POLICY
from safeflux.cli._logs import is_quiet
from safeflux.disk.folders import check_writable
from safeflux.errors import ConfigError


def examples(*lines: str) -> str:
    """The end of a command's help: commands to copy."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)  # click reads \b as: keep these lines


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
lock = click.option("--lock", type=click.Path(), help="Fail unless all is as in this lock file.")
policy = click.option(
    "--policy", type=POLICY, default="strict", show_default=True, help="A bundled name, or a YAML file."
)
stores = click.option(
    "--store", "stores", multiple=True, type=click.Path(), help="A folder with masks, beside the bundled; repeatable."
)
password = click.option(
    "--password",
    envvar="SAFEFLUX_KEY_PASSWORD",
    prompt=True,
    prompt_required=False,
    hide_input=True,
    help="The key is encrypted: ask for its password, or take it from SAFEFLUX_KEY_PASSWORD.",
)
DETECTOR_HELP = (
    "judge, onnx:FILE, zero-shot:ID|FOLDER, classifier:ID|FOLDER, opennsfw, or a kind that a package brings."
)
"""Of options that name a detector."""
MODEL_HELP = "A profile (flux2-klein-4b), a hub id, or the folder of a pipeline."
"""Of options that name a model."""
_keys = click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(),
    help="A public key, PEM, of who may have signed the masks; one that the policy lists. Repeatable.",
)


def on_device(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where a model runs, and in which dtype its weights are."""
    dtypes = click.Choice(["float32", "bfloat16", "float16"])
    command = click.option("--dtype", type=dtypes, default="float32", show_default=True, help="Dtype of the weights.")(
        command
    )
    return click.option("--device", default="cpu", show_default=True, help="Where to draw, e.g. cuda.")(command)


def pairs(ctx: click.Context, parameter: click.Parameter, settings: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE texts as a dictionary."""
    parts = [setting.partition("=") for setting in settings]
    for key, equals, _ in parts:
        if not (key and equals):
            raise click.BadParameter(f"expected KEY=VALUE, got {key!r}", ctx, parameter)
    return {key: value for key, _, value in parts}


def calls(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a pipeline is called: `call`, texts by their keys, and `batch`."""
    batch = click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures at a time.")
    what = "Argument of the pipeline's call, e.g. height=512. Repeatable."
    return click.option("--call", multiple=True, metavar="KEY=VALUE", callback=pairs, help=what)(batch(command))


def call_arguments(pipeline: type, settings: dict[str, str]) -> dict[str, Any]:
    """Arguments of a pipeline's call, values read as YAML; an unknown one is refused before the model loads."""
    known = set(inspect.signature(pipeline.__call__).parameters) - {"self", "prompt", "generator"}
    for key in settings:
        if key not in known:
            raise ConfigError(f"--call {key}: {pipeline.__name__} takes {', '.join(sorted(known))}")
    return {key: yaml.safe_load(value) for key, value in settings.items()}


def store(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that says where masks are; the command gets a `store` of the bundled ones and those."""

    @stores
    @wraps(command)
    def run(*arguments: Any, stores: tuple[str, ...], keys: tuple[str, ...] = (), **options: Any) -> Any:
        from safeflux.masks.store import open_store

        return command(*arguments, store=open_store(stores or None, keys), **options)

    return run


def masks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where masks are, and who may have signed them; the command gets a `store` of both."""
    return store(_keys(command))


def writable(ctx: click.Context, parameter: click.Parameter, folder: Path | None) -> Path | None:
    """Refuse now a folder that could not be written to at the end of the command."""
    if folder is not None:
        try:
            check_writable(folder)
        except ConfigError as error:
            raise click.BadParameter(str(error), ctx, parameter) from error
    return folder


class Bar:
    """A progress bar on stderr; where stderr is no terminal, at most one line a minute. Notes are printed on both."""

    def __init__(self, *, of_bytes: bool = False, seconds_between_lines: float = 60.0) -> None:
        amount = DownloadColumn() if of_bytes else MofNCompleteColumn()
        times = (TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"))
        self._console = Console(stderr=True, quiet=is_quiet())
        self._is_shown = sys.stderr.isatty() and not is_quiet()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            amount,
            *times,
            console=self._console,
            transient=True,
            disable=not self._is_shown,
            speed_estimate_period=3600,  # seconds; a training round may take minutes
        )
        self._task = self._bar.add_task("", total=None)
        self._what, self._seconds = "", seconds_between_lines
        self._began = self._printed = time.monotonic()
        self._first = 0

    def __enter__(self) -> "Bar":
        """Show it."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take it away."""
        self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Name the work in progress, how much of it is done, and of how much; another name starts the times anew."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._first = what, now, done
            self._bar.reset(self._task, description=what, completed=done, total=total)
        self._bar.update(self._task, completed=done, total=total)
        if not self._is_shown and now - self._printed >= self._seconds:
            self._printed = now
            self.note(f"{what}: {done} of {total}, {self._times(now - self._began, done, total)}")

    def _times(self, elapsed: float, done: int, total: int) -> str:
        """Elapsed time and, once something was done, the time left at the same speed."""
        made = done - self._first
        left = f", about {_clock(elapsed * (total - done) / made)} left" if made else ""
        return f"{_clock(elapsed)} elapsed{left}"

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
