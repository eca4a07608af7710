"""Which sites can erase an art style: a mask of each kind, measured on things that it was trained with and on others.

    python -m benchmarks.style_sites --report runs/style_sites.json

The embedded model's art style is learned on three of four of the neutral things that mask training knows, from the
same prompts and noises, with masks of single weights where the text path begins (the category's own choice of sites),
of weights anywhere in it, of weights and neurons, and of the image stream's neurons alone.
Each mask is then asked for the style, and for the other styles, on things of its training and on the fourth part: is
the style found, is the thing right. Things that are held out for the evaluation are not asked.
About 12 minutes a mask on one core; an interrupted run resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import run

from benchmarks.timing import write_report
from safeflux.masks.file import load_masks
from safeflux.model.apply import apply_masks_
from safeflux.packs.emoji import words_of
from safeflux.rates import Rate
from safeflux.reference.judge import Judge
from safeflux.reference.measure import Ask, draw, in_turn, is_right, is_style_right, single_asks
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import Concept, known_concepts, vocabulary

CATEGORY = "fluent-style"
TRAINING = (
    "minimise=false",
    "confirm=false",
    "spoilt_share=0",
    "validation_prompts=64",
    "saliency.beta=1.5",
    "saliency.erase_batches=3",
    "saliency.preserve_batches=3",
)
ANYWHERE = f"categories.{CATEGORY}.sites=['*']"
EARLY = ("saliency.rounds=70", "saliency.bits_off=160", "saliency.bits_on=80", "validate_every=35")
MIXED = (ANYWHERE, "saliency.rounds=112", "saliency.bits_off=200", "saliency.bits_on=110", "validate_every=56")
FEW = (ANYWHERE, "saliency.rounds=60", "saliency.bits_off=30", "saliency.bits_on=15", "validate_every=30")
"""For neurons alone, each of which stands for hundreds of weights."""
WAYS: dict[str, Sequence[str]] = {
    "weights where the text path begins": EARLY,
    "weights": MIXED,
    "weights and neurons": ("kinds=[weight, ff, mlp, norm]", *MIXED),
    "neurons of the image stream": (
        "kinds=[ff, mlp, norm]",
        "sites=['single_transformer_blocks.*', 'transformer_blocks.*.ff:ff']",
        *FEW,
    ),
}
"""The options of each that are not defaults."""
PICTURES, FIRST_SEED = 192, 70_000_000
Questions = dict[str, list[Ask]]


def split() -> tuple[list[Concept], list[Concept]]:
    """The neutral things that training sees, and those that are kept from it."""
    things = known_concepts()
    return [thing for k, thing in enumerate(things) if k % 4], list(things[::4])


def questions() -> Questions:
    """The style and the other styles, on things of the training and on others, each thing in turn."""
    words, rng = vocabulary(), np.random.default_rng(5)
    erased = words.targets[CATEGORY].style
    others = [style for style in words.styles if style != erased]

    def ask(things: Sequence[Concept], style: str | None, count: int) -> list[Ask]:
        turns = in_turn([things[k] for k in rng.permutation(len(things))], count)
        return single_asks(words, turns, 1, rng, style=style)

    asked: Questions = {}
    for sort, things in zip(("of the training", "kept from it"), split(), strict=True):
        asked[f"the style, things {sort}"] = ask(things, erased, PICTURES)
        asked[f"other styles, things {sort}"] = [
            one for style in others for one in ask(things, style, PICTURES // len(others))
        ]
    return asked


def answers(pipe: Any, judge: Judge, asked: Questions) -> dict[str, Any]:
    """How often the style that was asked for is found, and the thing right."""
    found = {}
    for k, (name, asks) in enumerate(asked.items()):
        images = draw(pipe, [ask.prompt for ask in asks], FIRST_SEED + 10_000 * k)
        verdicts = judge(images)
        style, thing = Rate.of(is_style_right(verdicts, asks)), Rate.of(is_right(verdicts, asks))
        click.echo(f"  {name}: style found {style}, thing right {thing}")
        found[name] = {"style": style.to_json(), "thing": thing.to_json()}
    return found


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/style_sites"), show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(out: Path, report: Path | None) -> None:
    """Train, measure, print, write."""
    pipe, judge, asked = load_pipeline(), Judge(), questions()
    click.echo("no mask")
    ways: dict[str, Any] = {"no mask": {"answers": answers(pipe, judge, asked)}}
    prompts = embedded_options([CATEGORY])["prompts"].model_copy(update={"neutral": words_of(split()[0])})
    for name, settings in WAYS.items():
        click.echo(name)
        config = plan_run([CATEGORY], None, (*TRAINING, *settings), {"prompts": prompts})
        result = run(config, out / name.replace(" ", "-"), lambda report, most: click.echo(f"  {report}"))
        assert result is not None  # one process
        masks = load_masks(result.paths[CATEGORY])[0]
        with apply_masks_(pipe.transformer, masks):
            counts = {kind: count._asdict() for kind, count in masks.counts_by_kind.items()}
            ways[name] = {"settings": settings, "masked": counts, "answers": answers(pipe, judge, asked)}
    write_report(
        report, category=CATEGORY, training=TRAINING, kept_from_training=[c.name for c in split()[1]], ways=ways
    )


if __name__ == "__main__":
    main()
