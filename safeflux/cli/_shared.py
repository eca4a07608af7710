"""Shared by several commands: options, tables, a progress bar on stderr, and a check of the output folder."""

import inspect
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import click
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
from rich.table import Table

from safeflux.cli._completion import POLICY
from safeflux.cli._logs import is_quiet
from safeflux.disk.folders import check_writable
from safeflux.errors import ConfigError
from safeflux.policy.values import read_value
from safeflux.profiles.call import call_faults
from safeflux.reference import NAME


class FiniteRange(click.FloatRange):
    """A number from a bound on; unlike click's own, neither NaN nor infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {value}", param, ctx)
        return number


def examples(*lines: str) -> str:
    """The end of a command's help: commands to copy."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)  # \b tells click to keep the line breaks


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
lock = click.option("--lock", type=click.Path(), help="Fail unless policy, base and masks match this lock file.")
policy = click.option(
    "--policy", type=POLICY, default="strict", show_default=True, help="Bundled policy, or path of a YAML file."
)
stores = click.option(
    "--store",
    "stores",
    multiple=True,
    type=click.Path(),
    help="Folder with masks, or hf://ORG/NAME@COMMIT, besides the bundled ones. Repeatable.",
)
password = click.option(
    "--password",
    envvar="SAFEFLUX_KEY_PASSWORD",
    prompt=True,
    prompt_required=False,
    hide_input=True,
    help="Password of an encrypted key: prompts for it, unless SAFEFLUX_KEY_PASSWORD is set.",
)
DETECTOR_HELP = "judge, onnx:FILE, zero-shot:ID|FOLDER, classifier:ID|FOLDER, opennsfw, or a kind from another package."
"""Help of options that name a detector."""
MODEL_HELP = "Profile (flux2-klein-4b), hub id, or folder of a pipeline."
"""Help of options that name a model."""
model = click.option("--model", default=NAME, show_default=True, help=MODEL_HELP)
packs = click.option(
    "--pack", "packs", multiple=True, help="Words of a category: a bundled pack, or a YAML file. Repeatable."
)
seed = click.option(
    "--seed", type=click.IntRange(0, 4095), default=0, show_default=True, help="Seed of prompts and noises."
)
keys = click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(),
    help="PEM public key of a trusted signer, which the policy must list. Repeatable.",
)


def on_device(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for a model's device and dtype."""
    dtypes = click.Choice(["float32", "bfloat16", "float16"])

    @click.option("--device", default="cpu", show_default=True, help="Device to draw on, e.g. cuda.")
    @click.option("--dtype", type=dtypes, default="float32", show_default=True, help="Dtype of the weights.")
    @wraps(command)
    def run(*arguments: Any, device: str, **options: Any) -> Any:
        _check_device(device)
        return command(*arguments, device=device, **options)

    return run


def _check_device(name: str) -> None:
    """Refuse a device that PyTorch does not know or that is not here, before a model loads."""
    if name != "cpu":
        import torch

        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            why = str(error).partition("\n")[0]
            raise click.BadParameter(f"{name!r} cannot be used ({why})", param_hint="--device") from error


def pairs(ctx: click.Context, parameter: click.Parameter, settings: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE texts as a dictionary; the option's metavar names both parts in errors."""
    parts = [setting.partition("=") for setting in settings]
    for key, equals, value in parts:
        if not (key and value):
            got = repr(key + equals + value)
            raise click.BadParameter(f"expected {parameter.metavar}, got {got}", ctx, parameter)
    if twice := [key for key, count in Counter(key for key, _, _ in parts).items() if count > 1]:
        raise click.BadParameter(f"expected {twice[0]} once, got it twice", ctx, parameter)
    return {key: value for key, _, value in parts}


def calls(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a pipeline is called: `call`, texts by their keys, and `batch`."""
    help_ = "Pictures at a time.  [default: the prompts a batch of the model's training, or 1]"
    batch = click.option("--batch", type=click.IntRange(1), help=help_)
    what = "Argument of the pipeline's call, e.g. height=512. Repeatable."
    return click.option("--call", multiple=True, metavar="KEY=VALUE", callback=pairs, help=what)(batch(command))


def call_arguments(pipeline: type, settings: dict[str, str]) -> dict[str, Any]:
    """Arguments of a pipeline's call, values read as YAML; an unknown one is refused before the model loads."""
    known = set(inspect.signature(pipeline.__call__).parameters) - {"self", "prompt", "generator"}
    for key in settings:
        if key not in known:
            raise ConfigError(f"--call {key}: {pipeline.__name__} takes {', '.join(sorted(known))}")
    values = {key: read_value(value, f"--call {key}") for key, value in settings.items()}
    for key, fault in call_faults(values):
        raise ConfigError(f"--call {key}: {fault}")
    return values


def store(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option `--store`; the command gets a `store` with the bundled masks and those."""

    @stores
    @wraps(command)
    def run(*arguments: Any, stores: tuple[str, ...], keys: tuple[str, ...] = (), **options: Any) -> Any:
        from safeflux.masks.store import open_store

        return command(*arguments, store=open_store(stores or None, keys), **options)

    return run


def masks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options `--store` and `--key`; the command gets a `store` with both."""
    return store(keys(command))


def refuse_options_before(ctx: click.Context) -> None:
    """Refuse options of a group that stand before one of its commands."""
    for parameter in ctx.command.params:
        if ctx.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[0]} has no effect before `{ctx.invoked_subcommand}`; see `{ctx.command_path} "
                f"{ctx.invoked_subcommand} --help` for the options that go after it"
            )


def writable(ctx: click.Context, parameter: click.Parameter, folder: Path | None) -> Path | None:
    """Refuse at the start a folder that could not be written to at the end."""
    if folder is not None and not ctx.resilient_parsing:
        check_writable(folder)
    return folder


def out_folder(what: str, default: Path | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--out`: a folder that is refused at the start if it cannot be written to."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=default,
        show_default=default is not None,
        callback=writable,
        help=what,
    )


def refuse_inputs(out: Path, *inputs: Path) -> None:
    """Refuse to write to a file that the command reads, also under another name: --overwrite is not meant for it.

    Raises:
        ConfigError: It is one of them.
    """
    for given in inputs:
        if out.exists() and given.exists() and out.samefile(given):
            raise ConfigError(f"{out}: is an input of this command ({given}), and stays; choose another name")


def new_model(ctx: click.Context, parameter: click.Parameter, path: Path) -> Path:
    """Refuse the name of the embedded model for a model that is written: every command would take that one instead."""
    if str(path) == NAME:
        raise click.BadParameter(f"{NAME} is the name of the embedded model; choose another name", ctx, parameter)
    return path


def print_rows(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, num_texts: int = 1) -> None:
    """Print a table: columns of text on the left, the others to the right."""
    # No box and no wrapping: one line per row, so that other tools can process the output.
    table = Table(box=None, pad_edge=False)
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="left" if k < num_texts else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=160, highlight=False, markup=False).print(table)


class Bar:
    """A progress bar on stderr; if stderr is not a terminal, at most one line a minute. Notes are always printed."""

    def __init__(self, *, of_bytes: bool = False, seconds_between_lines: float = 60.0) -> None:
        amount = DownloadColumn() if of_bytes else MofNCompleteColumn()
        times = (TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"))
        self._console = Console(stderr=True, quiet=is_quiet())
        self._is_shown = sys.stderr is not None and sys.stderr.isatty() and not is_quiet()
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
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bar."""
        self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report the work in progress, the amount done and the total; another name restarts the times."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._first = what, now, done
            self._bar.reset(self._task, description=what, completed=done, total=total)
        self._bar.update(self._task, completed=done, total=total)
        if not self._is_shown and now - self._printed >= self._seconds:
            self._printed = now
            self.note(f"{what}: {done} of {total}, {self._times(now - self._began, done, total)}")

    def _times(self, elapsed: float, done: int, total: int) -> str:
        """Elapsed time and, once something is done, the time left at the same speed."""
        made = done - self._first
        left = f", about {_clock(elapsed * (total - done) / made)} left" if made else ""
        return f"{_clock(elapsed)} elapsed{left}"

    def note(self, text: str) -> None:
        """Print a permanent line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
