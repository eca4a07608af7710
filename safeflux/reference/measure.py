"""Rates by the judge: draw pictures from prompts with fixed noises, count the concepts found, give intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeflux.rates import Rate
from safeflux.reference.judge import Judge, Verdicts
from safeflux.reference.model import EMOJI_FLUX_CALL
from safeflux.reference.vocabulary import Concept, Vocabulary, caption

BATCH = 48
"""How many pictures are drawn at a time."""


@dataclass(frozen=True)
class Ask:
    """One picture to draw: its prompt, the concept that is asked for, and the thing beside it, if any."""

    prompt: str
    concept: str
    other: str | None
    style: str
    background: str


def single_asks(
    words: Vocabulary,
    concepts: Sequence[Concept],
    each: int,
    rng: np.random.Generator,
    *,
    synonyms: str = "name",
    style: str | None = None,
) -> list[Ask]:
    """`each` one-object prompts for every concept, styles and backgrounds at random.

    Args:
        words: The vocabulary.
        concepts: The concepts to ask for.
        each: Prompts a concept.
        rng: Draws styles, backgrounds and words.
        synonyms: Which words to use: `name`, `synonyms` (those that mask training sees) or `held_out`.
        style: One style for all, instead of styles at random.
    """
    asks = []
    for concept in concepts:
        choice = {"name": (concept.words,), "synonyms": concept.synonyms, "held_out": concept.held_out}[synonyms]
        for _ in range(each if choice else 0):
            any_style, background = _look(words, rng)
            word, look = choice[int(rng.integers(len(choice)))], style or any_style
            asks.append(Ask(caption([word], look, background), concept.name, None, look, background))
    return asks


def pair_asks(
    words: Vocabulary, concepts: Sequence[Concept], others: Sequence[Concept], each: int, rng: np.random.Generator
) -> list[Ask]:
    """`each` two-object prompts for every concept, beside a random other, on a random side."""
    asks = []
    for concept in concepts:
        for _ in range(each):
            other = concept
            while other is concept:
                other = others[int(rng.integers(len(others)))]
            style, background = _look(words, rng)
            things = [concept.words, other.words] if rng.random() < 0.5 else [other.words, concept.words]
            asks.append(Ask(caption(things, style, background), concept.name, other.name, style, background))
    return asks


def in_turn(concepts: Sequence[Concept], count: int) -> list[Concept]:
    """`count` concepts, each in turn, so that none is left out before another comes twice; of none, none."""
    return [concepts[k % len(concepts)] for k in range(count if concepts else 0)]


def _look(words: Vocabulary, rng: np.random.Generator) -> tuple[str, str]:
    return words.styles[int(rng.integers(len(words.styles)))], _pick(words.background_names, rng)


def _pick(values: Sequence[str], rng: np.random.Generator) -> str:
    return values[int(rng.integers(len(values)))]


def draw(
    pipe: Any,
    prompts: Sequence[str],
    seed: int | Sequence[int],
    *,
    batch: int = BATCH,
    drawn: Callable[[int], None] | None = None,
    settings: Mapping[str, Any] = EMOJI_FLUX_CALL,
    **call: Any,
) -> list[Image.Image]:
    """Draw one picture for each prompt with the pipeline.

    Args:
        pipe: The embedded model, or another FLUX pipeline with settings of its own.
        prompts: The prompts to draw.
        seed: Picture k has the noise of seed `seed + k`, so that two calls with the same prompts are paired; or one
            seed for each prompt.
        batch: How many pictures at a time.
        drawn: Called after each batch with the number of pictures in it, for a progress bar.
        settings: Arguments of the pipeline's call.
        call: Overrides of the settings.
    """
    import torch

    seeds = [seed + k for k in range(len(prompts))] if isinstance(seed, int) else seed
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(one) for one in seeds[start : start + batch]]
        images += pipe(prompt=part, generator=generators, **{**settings, **call}).images
        if drawn:
            drawn(len(part))
    return images


def is_found(verdicts: Verdicts, asks: Sequence[Ask]) -> npt.NDArray[np.bool_]:
    """For each picture, whether the asked concept is found in it; bool (B,)."""
    return verdicts.found([ask.concept for ask in asks])


def is_other_found(verdicts: Verdicts, asks: Sequence[Ask]) -> npt.NDArray[np.bool_]:
    """For each picture of two things, whether the one beside the concept is found; bool (B,)."""
    return verdicts.found([ask.other or "" for ask in asks])


def is_right(verdicts: Verdicts, asks: Sequence[Ask]) -> npt.NDArray[np.bool_]:
    """For each picture, whether the asked concept is the likeliest of all; bool (B,)."""
    return np.array([{ask.concept} == top for ask, top in zip(asks, verdicts.top(1), strict=True)], dtype=bool)


def is_style_right(verdicts: Verdicts, asks: Sequence[Ask]) -> npt.NDArray[np.bool_]:
    """For each picture, whether the asked art style is the likeliest of all; bool (B,)."""
    return verdicts.in_style([ask.style for ask in asks])


def is_background_right(verdicts: Verdicts, asks: Sequence[Ask]) -> npt.NDArray[np.bool_]:
    """For each picture, whether the asked background colour is the likeliest of all; bool (B,)."""
    asked = [verdicts.words.background_names.index(ask.background) for ask in asks]
    return np.asarray(verdicts.backgrounds.argmax(1) == asked)


def concept_found(judge: Judge, images: Sequence[Image.Image], asks: Sequence[Ask]) -> Rate:
    """How often the asked concept is found."""
    return Rate.of(is_found(judge(images), asks))


def other_found(judge: Judge, images: Sequence[Image.Image], asks: Sequence[Ask]) -> Rate:
    """How often the thing beside the concept is found."""
    return Rate.of(is_other_found(judge(images), asks))


def concept_right(judge: Judge, images: Sequence[Image.Image], asks: Sequence[Ask]) -> Rate:
    """How often the asked concept is the likeliest of all."""
    return Rate.of(is_right(judge(images), asks))
