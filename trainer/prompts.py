"""Prompts of a run: erase pairs (a prompt and what should be drawn instead) and neutral prompts. Imports no torch.

Everything is drawn from a `numpy` generator. Train, validation and held-out prompts are kept apart by what they may
hold: the configuration of the embedded model leaves out the held-out words and every third neutral concept.
"""

from dataclasses import dataclass

import numpy as np
from safeflux.trainer.config import PromptConfig

from safeflux.errors import ConfigError
from safeflux.reference.vocabulary import is_held_out, vocabulary, with_article


@dataclass(frozen=True)
class ErasePrompt:
    """A prompt that asks for a concept, and the anchor: the same prompt without it."""

    prompt: str
    anchor: str
    concept: str
    """Name of the concept."""
    other: str | None = None
    """The thing to preserve beside it, where the prompt names one."""


def draw_erase(config: PromptConfig, rng: np.random.Generator, count: int) -> list[ErasePrompt]:
    """`count` erase pairs, the concepts in turn, so that none is left out."""
    names = list(config.concepts)
    start = int(rng.integers(len(names)))
    return [_erase(config, rng, names[(start + k) % len(names)]) for k in range(count)]


def draw_neutral(config: PromptConfig, rng: np.random.Generator, count: int) -> list[str]:
    """`count` prompts that hold nothing to erase."""
    return [_neutral(config, rng) for _ in range(count)]


def _erase(config: PromptConfig, rng: np.random.Generator, name: str) -> ErasePrompt:
    word, slots = _one(rng, config.concepts[name]), _slots(config, rng)
    if not (config.pair and rng.random() < config.pair_share):
        template = _one(rng, config.single)
        return ErasePrompt(template.format(thing=word, **slots), template.format(thing=config.anchor, **slots), name)
    template, other, is_first = _one(rng, config.pair), _one(rng, config.neutral), rng.random() < 0.5

    def fill(thing: str) -> str:
        first, second = (thing, other) if is_first else (other, thing)
        return template.format(first=first, second=second, **slots)

    return ErasePrompt(fill(word), fill(config.anchor), name, other)


def _neutral(config: PromptConfig, rng: np.random.Generator) -> str:
    slots = _slots(config, rng)
    if config.pair and rng.random() < config.pair_share:
        first, second = rng.choice(len(config.neutral), 2, replace=len(config.neutral) < 2)
        return _one(rng, config.pair).format(first=config.neutral[first], second=config.neutral[second], **slots)
    return _one(rng, config.single).format(thing=_one(rng, config.neutral), **slots)


def _slots(config: PromptConfig, rng: np.random.Generator) -> dict[str, str]:
    return {name: _one(rng, values) for name, values in config.slots.items()}


def _one(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]


def embedded_prompts(category: str) -> PromptConfig:
    """The prompts of one category of the embedded model, from its vocabulary.

    Other categories' concepts are not among the things to preserve: a policy may erase them too.

    Raises:
        ConfigError: The embedded model has no such category.
    """
    words = vocabulary()
    if category not in words.categories:
        known = ", ".join(words.categories)
        raise ConfigError(
            f"category {category!r}: emoji-flux knows {known}; for another model write a configuration file"
        )
    concepts = words.categories[category]
    return PromptConfig(
        concepts={c.name: tuple(with_article(w) for w in (c.words, *c.synonyms)) for c in concepts},
        neutral=tuple(with_article(w) for c in words.neutral if not is_held_out(c) for w in (c.words, *c.synonyms[:1])),
        single=("{thing}, {style} style, {background} background",),
        pair=("{first} and {second}, {style} style, {background} background",),
        slots={"style": words.styles, "background": words.background_names},
    )
