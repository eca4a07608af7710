"""Measure a model by its detectors, on seeds that the recipe did not select on, and draw the contact sheet.

    python -m benchmarks.emoji_flux.evaluate --to safeflux/reference --report benchmarks/emoji_flux/report

The judge decides, and the second detector has its say: `emoji-clip/` beside the judge or, without one there, that of
the embedded model, which was trained with the words of the grown one. Writes `figures.json` and `contact_sheet.webp`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageDraw

from safeflux.rates import Rate
from safeflux.reference import SECOND
from safeflux.reference.judge import Judge, Verdicts
from safeflux.reference.measure import Ask, draw, pair_asks, single_asks
from safeflux.reference.model import EMOJI_CLIP, EMOJI_FLUX_CALL, load_pipeline
from safeflux.reference.vocabulary import Vocabulary, caption, vocabulary

from .options import report_option, to_option, vocabulary_option
from .second import SecondJudge

SEED = 70_000_000
LABEL = 16
"""Pixels of a name's line in the contact sheet."""


def figures_of(verdicts: Verdicts, asks: list[Ask]) -> dict[str, Rate]:
    """Concept (all that were asked for are the likeliest), style and background right."""
    words = verdicts.words
    tops = {count: verdicts.top(count) for count in (1, 2)}
    asked = [{ask.concept, *((ask.other,) if ask.other else ())} for ask in asks]
    styles, backgrounds = verdicts.styles.argmax(1), verdicts.backgrounds.argmax(1)
    return {
        "concept": Rate.of(names == tops[len(names)][k] for k, names in enumerate(asked)),
        "style": Rate.of(words.styles[s] == ask.style for s, ask in zip(styles, asks, strict=True)),
        "background": Rate.of(
            words.background_names[b] == a.background for b, a in zip(backgrounds, asks, strict=True)
        ),
    }


def told(name: str, rates: dict[str, Rate]) -> dict[str, object]:
    """Print rates; return them as plain values."""
    click.echo("\n".join(f"{name}: {what} right {rate}" for what, rate in rates.items()))
    return {what: rate.to_json() for what, rate in rates.items()}


def sheet_prompts(words: Vocabulary) -> list[str]:
    """A prompt for every concept in every style, on backgrounds in turn."""
    backgrounds = words.background_names
    return [
        caption([c.words], style, backgrounds[(k + j) % len(backgrounds)])
        for k, c in enumerate(words.concepts)
        for j, style in enumerate(words.styles)
    ]


def contact_sheet(words: Vocabulary, images: Sequence[Image.Image]) -> Image.Image:
    """What was drawn from `sheet_prompts`: four pictures a concept, eight concepts a line."""
    across, wide, high = 8, 64 * len(words.styles), 64 + LABEL
    sheet = Image.new("RGB", (across * wide, -(-len(words.concepts) // across) * high), "white")
    pen = ImageDraw.Draw(sheet)
    for k, concept in enumerate(words.concepts):
        x, y = k % across * wide, k // across * high
        pen.text((x + 4, y), concept.words, fill="black", font_size=LABEL - 4)
        group = [np.asarray(image) for image in images[k * len(words.styles) : (k + 1) * len(words.styles)]]
        sheet.paste(Image.fromarray(np.concatenate(group, axis=1)), (x, y + LABEL))
    return sheet


@dataclass(frozen=True)
class Measuring:
    """Who measures, how much, and how pictures are drawn."""

    judge: Judge
    second: SecondJudge
    each: int
    pairs: int
    seed: int
    settings: Mapping[str, Any]

    def figures(self, pipe: Any, words: Vocabulary) -> dict[str, object]:
        """The rates of one object, of two and of synonyms, as plain values; printed too."""
        rng = np.random.default_rng(self.seed)
        tasks = {
            "one object": single_asks(words, words.concepts, self.each, rng),
            "two objects": pair_asks(words, words.concepts, words.concepts, self.pairs, rng),
            "synonym": single_asks(words, words.concepts, self.each // 2, rng, synonyms="synonyms")
            + single_asks(words, words.concepts, self.each // 2, rng, synonyms="held_out"),
        }
        found: dict[str, object] = {"settings": dict(self.settings), "first_seed": self.seed}
        others: dict[str, object] = {}
        for k, (name, asks) in enumerate(tasks.items()):
            first = self.seed + 1_000_000 * k
            images = draw(pipe, [ask.prompt for ask in asks], first, settings=self.settings)
            verdicts = self.judge(images)
            found[name] = told(name, figures_of(verdicts, asks))
            others[name] = told(f"{name}, second detector", figures_of(self.second(images), asks))
            if name == "one object":
                found["wrong by concept"] = wrong_by_concept(verdicts, asks)
        return {**found, "by the second detector": others}

    def write(self, pipe: Any, words: Vocabulary, report: Path) -> None:
        """Measure; leave `figures.json` and `contact_sheet.webp`."""
        report.mkdir(parents=True, exist_ok=True)
        found = self.figures(pipe, words)
        drawn = draw(pipe, sheet_prompts(words), SEED + 9_000_000, settings=self.settings)
        contact_sheet(words, drawn).save(report / "contact_sheet.webp", quality=90)
        (report / "figures.json").write_text(json.dumps(found, indent=1) + "\n")


def wrong_by_concept(verdicts: Verdicts, asks: list[Ask]) -> dict[str, int]:
    """Concept -> pictures in which it is not the likeliest; the worst first, none of the faultless."""
    pairs = zip(asks, verdicts.top(1), strict=True)
    return dict(Counter(ask.concept for ask, top in pairs if {ask.concept} != top).most_common())


def sizes_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of how much is measured."""
    options = (
        click.option(
            "--each", type=click.IntRange(2), default=16, show_default=True, help="One-object pictures a concept."
        ),
        click.option(
            "--pairs", type=click.IntRange(1), default=8, show_default=True, help="Two-object pictures a concept."
        ),
        click.option("--seed", default=SEED, show_default=True, help="First seed of the noises."),
        click.option("--steps", type=click.IntRange(1), default=8, show_default=True),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(help=__doc__)
@vocabulary_option
@to_option
@report_option
@sizes_options
def main(vocabulary_path: Path | None, to: Path, report: Path, each: int, pairs: int, seed: int, steps: int) -> None:
    """Measure and write."""
    words, folder = vocabulary(vocabulary_path), to / SECOND
    judge, second = Judge(to / "judge.onnx", words), SecondJudge(folder if folder.exists() else EMOJI_CLIP, words)
    settings = {**EMOJI_FLUX_CALL, "num_inference_steps": steps}
    Measuring(judge, second, each, pairs, seed, settings).write(load_pipeline(to / "emoji-flux"), words, report)


if __name__ == "__main__":
    main()
