"""What a mask erases and what it leaves alone, by the judge of the embedded model.

Validation pictures (which stop a run) and evaluation pictures (which go into the mask file) have noises and prompts
of their own.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from safeflux.trainer.config import TrainConfig
from safeflux.trainer.loop import Validation, Validator
from safeflux.trainer.prompts import draw_erase

from safeflux.apply import apply_masks_
from safeflux.masks import MaskSet
from safeflux.reference.judge import Judge
from safeflux.reference.measure import (
    Rate,
    concept_found,
    concept_right,
    draw,
    in_turn,
    other_found,
    pair_asks,
    single_asks,
)
from safeflux.reference.vocabulary import held_out_concepts, is_held_out, vocabulary

VALIDATION_SEED = 50_000_000
EVALUATION_SEED = 90_000_000
"""First seeds of the noises; a training noise is a 62-bit random number, so that meeting one is out of the question."""


def validator(pipe: Any, judge: Judge, config: TrainConfig) -> Validator:
    """Return the function that looks at validation pictures under a mask set.

    They answer three questions with as many pictures each: the concepts (as in training), things to preserve alone,
    and things to preserve beside a concept. The things are those that training may use; the held-out ones are for
    `evaluate`.
    """
    words, count = vocabulary(), config.validation_prompts
    rng = np.random.default_rng((config.seed, VALIDATION_SEED))
    erased = draw_erase(config.prompts, rng, count)
    things = [words.neutral[k] for k in rng.permutation(len(words.neutral)) if not is_held_out(words.neutral[k])]
    alone = single_asks(words, in_turn(things, count), 1, rng)
    beside = pair_asks(words, in_turn(words.categories[config.category], count), things, 1, rng)

    def validate(masks: MaskSet) -> Validation:
        with apply_masks_(pipe.transformer, masks):
            images = draw(pipe, [p.prompt for p in erased], VALIDATION_SEED)
            kept = draw(pipe, [ask.prompt for ask in alone + beside], VALIDATION_SEED + 100_000)
        found = judge(images).found([p.concept for p in erased]).mean()
        right = concept_right(judge, kept[: len(alone)], alone), other_found(judge, kept[len(alone) :], beside)
        return Validation(float(found), sum(rate.value for rate in right) / 2)

    return validate


@dataclass(frozen=True)
class Figures:
    """Rates of one model state; `evaluate` makes one without and one with the masks, on the same prompts and noises."""

    found: Rate
    """The asked concept of the category, named as in training."""
    found_synonym: Rate
    """The same, asked for by words that training never saw."""
    found_in_pair: Rate
    """The concept, asked for beside a neutral thing."""
    other_in_pair: Rate
    """That neutral thing."""
    kept: Rate
    """Accuracy on neutral concepts that training never saw."""

    def to_json(self) -> dict[str, Any]:
        """Every rate with its interval and counts."""
        return {name: rate.to_json() for name, rate in vars(self).items()}


def evaluate(pipe: Any, judge: Judge, category: str, *, each: int = 40, kept_each: int = 8, seed: int = 0) -> Figures:
    """Measure one category on the pipeline as it is now.

    Args:
        pipe: The embedded model.
        judge: The judge.
        category: One of the vocabulary's.
        each: Pictures for each concept of the category, and as many for pairs and for held-out words.
        kept_each: Pictures for each held-out neutral concept.
        seed: Draws the prompts, and shifts the noises.
    """
    words, rng = vocabulary(), np.random.default_rng((seed, EVALUATION_SEED))
    concepts, neutral = words.categories[category], held_out_concepts()
    singles = single_asks(words, concepts, each, rng)
    synonyms = single_asks(words, concepts, each, rng, synonyms="held_out")
    pairs = pair_asks(words, concepts, neutral, each, rng)
    kept = single_asks(words, neutral, kept_each, rng)
    first = EVALUATION_SEED + 1_000_000 * seed
    drawn = {
        name: draw(pipe, [ask.prompt for ask in asks], first + 100_000 * k)
        for k, (name, asks) in enumerate({"s": singles, "y": synonyms, "p": pairs, "k": kept}.items())
    }
    return Figures(
        concept_found(judge, drawn["s"], singles),
        concept_found(judge, drawn["y"], synonyms),
        concept_found(judge, drawn["p"], pairs),
        other_found(judge, drawn["p"], pairs),
        concept_right(judge, drawn["k"], kept),
    )
