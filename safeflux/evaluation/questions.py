"""The questions of an evaluation: sets of prompts with their noises, each independent of the other questions.

A set's prompts and noises depend on its name and the seed alone, so that a mask measured today is paired with one that
is measured next year, and a smaller evaluation is the beginning of a larger one. No noise of training, validation,
demo or recipe is among them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from safeflux.errors import ConfigError
from safeflux.packs.emoji import NEIGHBOURS
from safeflux.reference.measure import Ask, in_turn, pair_asks, single_asks
from safeflux.reference.vocabulary import (
    Concept,
    Target,
    Vocabulary,
    find_target,
    held_out_concepts,
    known_concepts,
    vocabulary,
)

FIRST_SEED = 2**60
"""The noises lie from here on: far above the ranges of the recipe, the demo and validation. Training noises are 62-bit
random numbers, so that meeting one is out of the question."""
MAX_SEED = 4095
_SET_BITS = 16  # noises of one set
MAX_PICTURES = 2**_SET_BITS
"""Pictures of one set at most: its noises end where another set's could begin."""

KEPT = ("neutral, held out from mask training", "neutral, known to mask training", "other categories")
"""The groups of concepts that a mask should leave alone."""


@dataclass(frozen=True)
class Sizes:
    """How many pictures an evaluation draws with each model, by kind of question; 0 leaves the question out."""

    found: int = 200
    """For each target: by name."""
    details: int = 200
    """For each target: by held-out words or, for a style, on held-out things; beside a neutral thing."""
    neighbours: int = 100
    """For each target: of its nearest neighbours."""
    kept: int = 1000
    """Neutral concepts, half of them held out from mask training."""
    others: int = 48
    """For each category that is not among the targets."""

    def __post_init__(self) -> None:
        """Refuse numbers that leave nothing to measure, or more than a set has noises."""
        for name, value in vars(self).items():
            least = 2 if name in ("found", "kept") else 0
            if not least <= value <= MAX_PICTURES:
                raise ConfigError(f"pictures for {name!r}: expected {least} to {MAX_PICTURES}, got {value}")


@dataclass(frozen=True)
class Question:
    """One set of prompts; picture k is drawn from the noise of seed `first_seed + k`."""

    name: str
    asks: tuple[Ask, ...]
    first_seed: int

    @property
    def is_neutral(self) -> bool:
        """Whether it asks for neutral concepts at large."""
        return self.name in KEPT


def target_of(category: str, concepts: Collection[str] = ()) -> Target:
    """The target of a category: of its concepts or, without any, the vocabulary's target of that name.

    A mask that names its own category as its only concept stands for all of the vocabulary's concepts of that category.

    Raises:
        ConfigError: The embedded model has no such category, or its judge does not know a concept.
    """
    known = vocabulary().targets
    if category in known and set(concepts) <= {category}:
        return known[category]
    if concepts:
        return find_target(category, concepts)
    raise ConfigError(f"category {category!r}: expected one that the embedded model draws: {', '.join(known)}")


def questions_of(
    erased: Collection[Target], sizes: Sizes, seed: int, words: Vocabulary | None = None
) -> dict[str, Question]:
    """All questions about masks that are to erase these targets, by name; those with nothing to ask are left out.

    Args:
        erased: What the masks are to erase.
        sizes: How many pictures for each.
        seed: Of prompts and noises.
        words: Another vocabulary than that of the embedded model; its targets are the other categories.

    Raises:
        ConfigError: The seed is out of range.
    """
    names = {target.name for target in erased}
    words = words or vocabulary()
    others = [target for name, target in words.targets.items() if target.concepts and name not in names]
    every = [
        *(by_name(target, sizes.found, seed, words) for target in erased),
        *(ask(target, sizes.details, seed, words) for target in erased for ask in (held_out, beside)),
        *(neighbours(target, sizes.neighbours, seed, words) for target in erased),
        *neutral(sizes.kept, seed, words),
        *(by_name(target, sizes.others, seed, words) for target in others),
    ]
    return {question.name: question for question in every if question.asks}


def by_name(target: Target, count: int, seed: int, words: Vocabulary | None = None) -> Question:
    """The concepts by their names, in turn; for a style, neutral things in it that mask training knows."""
    concepts = target.concepts if target.concepts else known_concepts(words)
    return _single(f"{target.name}/by name", concepts, count, seed, words, style=target.style)


def held_out(target: Target, count: int, seed: int, words: Vocabulary | None = None) -> Question:
    """The same, held out from training: other words for the concepts, if there are any; for a style, other things."""
    name = f"{target.name}/held out"
    if target.style:
        return _single(name, held_out_concepts(words), count, seed, words, style=target.style)
    concepts = [concept for concept in target.concepts if concept.held_out]
    return _single(name, concepts, count, seed, words, synonyms="held_out")


def beside(target: Target, count: int, seed: int, words: Vocabulary | None = None) -> Question:
    """The concepts, in turn, each beside a neutral thing that mask training never saw; empty for a style."""
    name = f"{target.name}/beside"
    rng = rng_of(name, seed)
    concepts = in_turn(_shuffled(target.concepts, rng), count)
    things = [concept for concept in held_out_concepts(words) if concept not in target.concepts]
    return _question(name, pair_asks(words or vocabulary(), concepts, things, 1, rng), seed)


def neighbours(target: Target, count: int, seed: int, words: Vocabulary | None = None) -> Question:
    """The target's nearest neighbours, in turn; empty where none are known."""
    concepts = [(words or vocabulary())[name] for name in NEIGHBOURS.get(target.name, ())]
    return _single(f"{target.name}/neighbours", concepts, count, seed, words)


def neutral(count: int, seed: int, words: Vocabulary | None = None) -> tuple[Question, Question]:
    """Neutral concepts, `count` in all: held out from mask training, and known to it."""
    return (
        _single(KEPT[0], held_out_concepts(words), count - count // 2, seed, words),
        _single(KEPT[1], known_concepts(words), count // 2, seed, words),
    )


def _single(
    name: str,
    concepts: Sequence[Concept],
    count: int,
    seed: int,
    words: Vocabulary | None,
    *,
    synonyms: str = "name",
    style: str | None = None,
) -> Question:
    rng = rng_of(name, seed)
    turns = in_turn(_shuffled(concepts, rng), count)
    words = words or vocabulary()
    return _question(name, single_asks(words, turns, 1, rng, synonyms=synonyms, style=style), seed)


def _shuffled(concepts: Sequence[Concept], rng: np.random.Generator) -> list[Concept]:
    """In another order for each set, so that a short one favours no part of the vocabulary."""
    return [concepts[k] for k in rng.permutation(len(concepts))]


def rng_of(name: str, seed: int) -> np.random.Generator:
    """Draws the prompts of a set, and of no other.

    Raises:
        ConfigError: The seed is out of range.
    """
    return np.random.default_rng((_checked(seed), crc32(name.encode())))


def first_seed_of(name: str, seed: int) -> int:
    """The first noise of a set; `MAX_PICTURES` of them are its own.

    Raises:
        ConfigError: The seed is out of range.
    """
    return FIRST_SEED + ((_checked(seed) << 32 | crc32(name.encode())) << _SET_BITS)


def _checked(seed: int) -> int:
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed: expected 0 to {MAX_SEED}, got {seed}")
    return seed


def _question(name: str, asks: Sequence[Ask], seed: int) -> Question:
    return Question(name, tuple(asks), first_seed_of(name, seed))
