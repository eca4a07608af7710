"""The memory that it takes to make a method, in a process of its own, where nothing else counts.

    python -m benchmarks.peers.memory ESD '{"where": "all", "eta": 1.0, "lr": 1e-4, "steps": 200}' weapons alcohol

Peak memory does not grow with the number of steps, so two are taken.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence

import click

from benchmarks.peers.material import Material
from benchmarks.peers.method import Settings
from benchmarks.peers.methods import METHODS
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import vocabulary

_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of the unit of `ru_maxrss`."""


def memory_of(method: str, settings: Settings, names: Sequence[str]) -> dict[str, float]:
    """Peak megabytes with the model loaded, `model`, and while the method was made for these targets, `making`."""
    few = {**settings, "steps": 2} if "steps" in settings else dict(settings)
    command = [sys.executable, "-m", __name__, method, json.dumps(few), *names]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command(help=__doc__)
@click.argument("method", type=click.Choice(list(METHODS)))
@click.argument("settings", type=json.loads)
@click.argument("names", nargs=-1)
def main(method: str, settings: Settings, names: Sequence[str]) -> None:
    """Make it, and print."""
    pipe = load_pipeline()
    before = _peak()
    targets = [vocabulary().targets[name] for name in names]
    chosen = METHODS[method]
    groups = [[target] for target in targets] if chosen.combine else [targets]
    made = [chosen.make(Material(pipe, batches=2), group, settings) for group in groups]
    if chosen.combine:
        chosen.combine(Material(pipe), made, settings)
    click.echo(json.dumps({"model": before, "making": _peak()}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT / 1e6


if __name__ == "__main__":
    main()
