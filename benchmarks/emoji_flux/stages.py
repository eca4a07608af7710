"""Stages of a recipe, each a command of its own that leaves a file when it is done."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click


def run_left(out: Path, stages: Iterable[tuple[str, str]], further: Mapping[str, Sequence[str]], *common: str) -> None:
    """Run the stages whose file is not there.

    Args:
        out: Folder of the run.
        stages: Each with its module in `benchmarks`, options of its own behind it, and its file in `out`.
        further: Module -> more options.
        common: Options of every stage.
    """
    out.mkdir(parents=True, exist_ok=True)
    for stage, left in stages:
        if (out / left).exists():
            click.echo(f"{stage}: done before")
            continue
        module, *options = stage.split()
        run_stage(module, *options, *further.get(module, ()), "--out", str(out), *common)


def run_stage(module: str, *arguments: str) -> None:
    """Run one stage in a process of its own.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    click.echo(f"{module} {' '.join(arguments)}")
    subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *arguments], check=True)
