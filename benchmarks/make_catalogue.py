"""The commands that made the shipped masks, one after another; a finished stage is skipped, an interrupted one resumes.

    python -m benchmarks.make_catalogue

Each mask is learned alone, as an operator would learn one. Combined as they are, they spoil each other, so all are then
repaired together, each batch with another subset of them on, and brought to rest by rounds that switch fewer and fewer
bits and look again at what was spoilt. The style, of which most is left then, goes through a few more rounds beside the
others, which stay as they are. Learned alone they are also what the others are compared with
(`benchmarks.catalogue --against runs/alone`). How many stages and rounds there are was chosen by validation. Masks are
not minimised: 96 pictures are too few to take bits back by.
One to four minutes for each mask alone, 25 for each joint stage, 13 for the style's, on one core.

All these take things from their words. The last stage, `things`, goes on from the shipped masks, beside that of the
style, and takes the things themselves: shipped as `CATEGORY-things`. 45 minutes on one core.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

THINGS = ("weapons", "alcohol", "tobacco", "drugs", "gambling", "horror", "character")
STYLE = "fluent-style"
ALONE = "alone"
"""Folder of the masks that were learned alone."""
EVERY = (*THINGS, STYLE)
_WHOLE = "minimise=false confirm=false "
_ALIKE = _WHOLE + "spoilt_share=0 "
_OF_A_STYLE = (
    "saliency.beta=1.5 saliency.erase_batches=3 saliency.preserve_batches=3 validation_prompts=128 "
    "saliency.rounds=72 saliency.bits_off=160 saliency.bits_on=80 validate_every=18"
)
_REPAIR = (
    "prompts.preserve_pairs=1600 saliency.erase_batches=2 saliency.preserve_batches=6 saliency.beta=6 "
    "saliency.rounds=45 saliency.warm_up=3 saliency.bits_off=90 saliency.bits_on=110 "
    "validate_every=20 validation_prompts=96"
)
_REST = _WHOLE + (
    "prompts.erase_pairs=1024 saliency.erase_batches=2 saliency.preserve_batches=8 saliency.beta=6 "
    "saliency.rounds=4 saliency.warm_up=3 saliency.last_rounds=39 saliency.bits_off=90 saliency.bits_on=110 "
    "validate_every=15 validation_prompts=96"
)
_BESIDE = _WHOLE + (
    "saliency.beta=3 saliency.erase_batches=4 saliency.preserve_batches=6 saliency.rounds=16 saliency.warm_up=3 "
    "saliency.last_rounds=10 saliency.bits_off=60 saliency.bits_on=40 target_found=0.005 validate_every=13 "
    "validation_prompts=256 seed=3"
)
_TAKEN = _WHOLE + (
    "kinds=[weight,image] erase_terms.named=0.12 erase_terms.own=0.28 erase_terms.empty=0.2 erase_terms.bank=0.4 "
    "preserve_terms.named=0.25 preserve_terms.own=0.5 preserve_terms.empty=0.25 saliency.erase_batches=1 "
    "saliency.preserve_batches=6 saliency.beta=8 saliency.warm_up=3 saliency.bits_off=200 saliency.bits_on=90 "
    "saliency.price_floor=0.5 validate_every=50 validation_prompts=64 seed=5 target_found=0.02 saliency.rounds=70 "
    "saliency.last_rounds=30 prompts.erase_pairs=256 prompts.preserve_pairs=1200"
)
Stage = tuple[str, Sequence[str], tuple[str, ...], str]
STAGES: tuple[Stage, ...] = (
    *((f"{ALONE}/{name}", (name,), (), _ALIKE + "validation_prompts=96") for name in THINGS),
    (f"{ALONE}/{STYLE}", (STYLE,), (), _ALIKE + _OF_A_STYLE),
    ("repair", EVERY, tuple(f"{ALONE}/{name}" for name in EVERY), _ALIKE + _REPAIR),
    ("catalogue", EVERY, ("repair",), _REST),
    ("style", (STYLE,), ("catalogue",), _BESIDE),
)
"""Name, categories, the stages whose masks it starts from, and what it sets beside the defaults. What these stages made
for other categories stays as it is, beside the masks that are learned."""
SHIPPED = "shipped"
"""In the place of a stage: the masks in the package."""
TAKEN: Stage = ("things", THINGS, (SHIPPED,), _TAKEN)


def command(out: Path, name: str, categories: Sequence[str], starts: Sequence[str], settings: str) -> list[str]:
    """The `safeflux train` of one stage."""
    made = [(c, start) for c in EVERY for start in starts if _makes(start, c)]
    options = [("--category", c) for c in categories]
    options += [
        ("--initial" if c in categories else "--with", str(_folder(out, start) / f"{c}.safetensors"))
        for c, start in made
    ]
    options += [("--set", setting) for setting in settings.split()]
    return ["train", "--out", str(out / name), *(part for option in options for part in option)]


def _folder(out: Path, stage: str) -> Path:
    return Path("policies/masks/emoji-flux") if stage == SHIPPED else out / stage


def _makes(stage: str, category: str) -> bool:
    return stage == SHIPPED or any(name == stage and category in categories for name, categories, _, _ in STAGES)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
def main(out: Path) -> None:
    """Run the stages that are left."""
    for name, categories, starts, settings in (*STAGES, TAKEN):
        if all((out / name / f"{category}.safetensors").exists() for category in categories):
            click.echo(f"{name}: done before")
            continue
        arguments = command(out, name, categories, starts, settings)
        click.echo(f"safeflux {' '.join(arguments)}")
        subprocess.run([sys.executable, "-m", "safeflux", *arguments], check=True)


if __name__ == "__main__":
    main()
