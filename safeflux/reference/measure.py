"""Rates by the judge: draw pictures from prompts with fixed noises, count what is found, give intervals."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeflux.reference.judge import Judge, Verdicts
from safeflux.reference.model import CALL
from safeflux.reference.vocabulary import Concept, Vocabulary, caption, vocabulary

Z = 1.959963984540054
"""Two-sided 95 % of the normal distribution."""


@dataclass(frozen=True)
class Rate:
    """A share of n trials, with its 95 % Wilson interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share that hit; 0 for no trials."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95 % interval (Wilson 1927).

        Examples:
            >>> low, high = Rate(0, 200).interval
            >>> round(low, 4), round(high, 4)
            (0.0, 0.0188)
        """
        if not self.n:
            return 0.0, 1.0
        centre = (self.value + Z**2 / (2 * self.n)) / (1 + Z**2 / self.n)
        spread = Z / (1 + Z**2 / self.n) * (self.value * (1 - self.value) / self.n + Z**2 / (4 * self.n**2)) ** 0.5
        return max(0.0, centre - spread), min(1.0, centre + spread)

    def __add__(self, other: "Rate") -> "Rate":
        """The trials of both as one."""
        return Rate(self.hits + other.hits, self.n + other.n)

    def to_json(self) -> dict[str, Any]:
        """Value, interval and counts."""
        return {"rate": self.value, "interval_95": list(self.interval), "hits": self.hits, "n": self.n}

    def __str__(self) -> str:
        """`97.5 % (95.1 to 98.8, n = 320)`."""
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f}, n = {self.n})"

    @classmethod
    def of(cls, values: Iterable[bool | np.bool_]) -> "Rate":
        """Count the true ones."""
        hits = [bool(value) for value in values]
        return cls(sum(hits), len(hits))


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
        concepts: What to ask for.
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
    batch: int = 48,
    drawn: Callable[[int], None] | None = None,
    settings: Mapping[str, Any] = CALL,
    **call: Any,
) -> list[Image.Image]:
    """Draw one picture for each prompt with the pipeline.

    Args:
        pipe: The embedded model, or another FLUX pipeline with settings of its own.
        prompts: What to draw.
        seed: Picture k has the noise of seed `seed + k`, so that two calls with the same prompts are paired; or one
            seed for each prompt.
        batch: How many pictures at a time.
        drawn: Called after each batch with the number of pictures in it, for a progress bar.
        settings: What the pipeline is called with.
        call: Overrides of the settings.
    """
    import torch

    seeds = [seed + k for k in range(len(prompts))] if isinstance(seed, int) else seed
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(one) for one in seeds[start : start + batch]]
        images += pipe(part, generator=generators, **{**settings, **call}).images
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
    asked = [vocabulary().background_names.index(ask.background) for ask in asks]
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
