"""The configuration of a run on the embedded model, from its vocabulary. Imports no torch."""

from collections.abc import Sequence
from typing import Any

from safeflux.trainer.config import CategoryConfig, PromptConfig, TrajectoryConfig

from safeflux.errors import ConfigError
from safeflux.reference import NAME
from safeflux.reference.vocabulary import NOTHING_WORD, Concept, Target, known_concepts, vocabulary, with_article

TOGETHER: dict[str, Any] = {
    "saliency": {"rounds": 60, "warm_up": 4, "erase_batches": 1, "preserve_batches": 8, "preserve_budget": 0.03},
    "validate_every": 6,
    "validation_prompts": 128,
}
"""Options of a run that learns several masks. A batch to preserve serves all of them, and the budget is for all."""
BEYOND = TrajectoryConfig(hold_steps=0, reversal=0.5)
"""For a style. Where the prompt says none, the model draws each of its styles about as often, so that a style's word
that is merely ignored still gives that style now and then: the target must lie beyond the anchor."""

OF_A_STYLE = 2048
"""Erase prompts of a style, so that each thing comes up often enough with it."""

WHERE_TEXT_BEGINS = ("context_embedder:*", "transformer_blocks.0.*")
"""Sites of a style's mask: where its word comes in, a third of the text path's bits, which erases as much as all of it
(`benchmarks.style_sites`)."""


def embedded_options(categories: Sequence[str]) -> dict[str, Any]:
    """The options of a run that learns the masks of these categories of the embedded model.

    Raises:
        ConfigError: The embedded model has no such category.
    """
    words = vocabulary()
    if unknown := [name for name in categories if name not in words.targets]:
        known = ", ".join(words.targets)
        raise ConfigError(
            f"category {unknown[0]!r}: emoji-flux knows {known}; for another model write a configuration file"
        )
    targets = {name: _category(target) for name, target in words.targets.items()}
    prompts = PromptConfig(
        neutral=words_of(known_concepts()),
        others={name: target for name, target in targets.items() if name not in categories},
        single=("{thing}, {style} style, {background} background",),
        pair=("{first} and {second}, {style} style, {background} background",),
        slots={"style": words.styles, "background": words.background_names},
    )
    return {
        "categories": {name: targets[name] for name in categories},
        "prompts": prompts,
        "model": NAME,
        "recompute": "none",  # its activations are small
        **(TOGETHER if len(categories) > 1 else {}),
    }


def words_of(concepts: Sequence[Concept]) -> tuple[str, ...]:
    """All words for some concepts but the held-out ones, with their articles."""
    return tuple(with_article(word) for c in concepts for word in (c.words, *c.synonyms))


def _category(target: Target) -> CategoryConfig:
    if target.style:
        return CategoryConfig(
            concepts={target.style: (target.style,)},
            kind="style",
            slot="style",
            anchor=target.instead or NOTHING_WORD,
            trajectory=BEYOND,
            erase_pairs=OF_A_STYLE,
            sites=WHERE_TEXT_BEGINS,
        )
    concepts = {c.name: words_of([c]) for c in target.concepts}
    return CategoryConfig(concepts=concepts, kind=target.kind, anchor=NOTHING_WORD)
