"""The commands that made the shipped masks, one after another; a stage that is done is skipped, a cut-off one goes on.

    python -m benchmarks.make_catalogue

Seven categories are learned together, the art style by itself; then all eight are repaired together, in three stages
whose budgets for preservation differ: tight (few bits move), wide (what AND had brought back is erased again), tight
again (twice as many bits are switched on as off, which gives back what the wide stage had cost). How many rounds each
took was chosen by validation. About 40 minutes on one core each stage counted; two stages can run side by side.

The first two stages were run before masks heeded what others erase (`undo` in `safeflux.trainer.estimates`), so that
today's code gives other bits in them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

SEVEN = ("weapons", "alcohol", "tobacco", "drugs", "gambling", "horror", "character")
STYLE = "fluent-style"
_JOINT = "prompts.erase_pairs=400 prompts.preserve_pairs=1200 validation_prompts=96"
STAGES: tuple[tuple[str, Sequence[str], tuple[str, ...], str], ...] = (
    ("seven", SEVEN, (), "saliency.rounds=29 validation_prompts=64"),
    (
        "style",
        (STYLE,),
        (),
        "saliency.rounds=24 saliency.bits_off=700 saliency.bits_on=100 saliency.preserve_budget=0.03 "
        "validate_every=6 validation_prompts=96",
    ),
    (
        "repair",
        (*SEVEN, STYLE),
        ("seven", "style"),
        f"saliency.rounds=10 saliency.bits_off=150 saliency.bits_on=120 validate_every=8 {_JOINT}",
    ),
    (
        "grow",
        (*SEVEN, STYLE),
        ("repair",),
        "saliency.rounds=17 saliency.bits_off=300 saliency.bits_on=200 saliency.preserve_budget=0.08 "
        f"saliency.beta_start=4 validate_every=8 {_JOINT}",
    ),
    (
        "catalogue",
        (*SEVEN, STYLE),
        ("grow",),
        "saliency.rounds=11 saliency.bits_off=100 saliency.bits_on=200 saliency.preserve_budget=0.035 "
        f"saliency.beta_start=5 validate_every=5 {_JOINT}",
    ),
)
"""Name, categories, the stages whose masks it starts from, and what it sets beside the defaults."""


def command(out: Path, name: str, categories: Sequence[str], starts: Sequence[str], settings: str) -> list[str]:
    """The `safeflux train` of one stage."""
    initial = [out / start / f"{c}.safetensors" for c in categories for start in starts if _makes(start, c)]
    options = [("--category", c) for c in categories] + [("--initial", str(path)) for path in initial]
    options += [("--set", setting) for setting in (*settings.split(), "minimise=false")]
    return ["train", "--out", str(out / name), *(part for option in options for part in option)]


def _makes(stage: str, category: str) -> bool:
    return any(name == stage and category in categories for name, categories, _, _ in STAGES)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
def main(out: Path) -> None:
    """Run what is left."""
    for name, categories, starts, settings in STAGES:
        if all((out / name / f"{category}.safetensors").exists() for category in categories):
            click.echo(f"{name}: done before")
            continue
        arguments = command(out, name, categories, starts, settings)
        click.echo(f"safeflux {' '.join(arguments)}")
        subprocess.run([sys.executable, "-m", "safeflux", *arguments], check=True)


if __name__ == "__main__":
    main()
