"""What a run looks at on the way: pictures of the embedded model under the masks, by its judge.

Prompts are of the training's sort (its words, its things to preserve), the noises are not the training's. The held-out
words and concepts are left to the evaluation.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from safeflux.trainer.config import TrainConfig
from safeflux.trainer.prompts import PromptSource

from safeflux.apply import apply_masks_
from safeflux.masks import MaskSet, compose
from safeflux.reference.judge import Judge
from safeflux.reference.measure import concept_right, draw, in_turn, other_found, pair_asks, single_asks
from safeflux.reference.vocabulary import is_held_out, vocabulary

VALIDATION_SEED = 50_000_000
"""First seed of the noises; a training noise has a 62-bit random seed, so that meeting one is out of the question."""

COLUMNS = 8
"""Columns of each sort in the picture of a validation."""


@dataclass(frozen=True)
class Validation:
    """What is seen under the masks of a run, as shares of pictures."""

    found: tuple[float, ...]
    """Each category, where it was asked for: the larger share of under its own mask and under all masks."""
    right: float
    """Things to preserve under all masks: mean of the share alone and of that beside a concept."""


class Validator(Protocol):
    """Looks at pictures. One mask set for each category, the trained ones first."""

    def found(self, category: int, masks: Sequence[MaskSet]) -> float:
        """How often a category is found: the larger share of under its own mask and under all masks."""

    def right(self, masks: Sequence[MaskSet]) -> float:
        """How often the things to preserve are, under all masks."""

    def picture(self, masks: Sequence[MaskSet]) -> Image.Image:
        """Some pictures of both sorts without masks, and below them the same with all masks."""


def validate(validator: Validator, masks: Sequence[MaskSet], trained: int) -> Validation:
    """Ask both questions, the first for every trained category."""
    return Validation(tuple(validator.found(k, masks) for k in range(trained)), validator.right(masks))


class JudgeValidator:
    """The validator of the embedded model."""

    def __init__(self, pipe: Any, judge: Judge, config: TrainConfig) -> None:
        self._pipe, self._judge = pipe, judge
        words, count, source = vocabulary(), config.validation_prompts, PromptSource(config)
        rng = np.random.default_rng((config.seed, VALIDATION_SEED))
        self._targets = [words.targets[name] for name in config.categories]
        self._erased = [source.erase(name, rng, count) for name in config.categories]
        things = [words.neutral[k] for k in rng.permutation(len(words.neutral)) if not is_held_out(words.neutral[k])]
        concepts = [concept for target in self._targets for concept in target.concepts] or things
        self._alone = single_asks(words, in_turn(things, -(-count // 2)), 1, rng)
        self._beside = pair_asks(words, in_turn(concepts, -(-count // 2)), things, 1, rng)

    def found(self, category: int, masks: Sequence[MaskSet]) -> float:
        """See `Validator`."""
        states = [masks[category]] if len(masks) == 1 else [masks[category], compose(*masks)]
        return max(self._found(category, state) for state in states)

    def right(self, masks: Sequence[MaskSet]) -> float:
        """See `Validator`."""
        images = self._draw([ask.prompt for ask in self._alone + self._beside], compose(*masks), 100_000)
        count = len(self._alone)
        rates = (
            concept_right(self._judge, images[:count], self._alone),
            other_found(self._judge, images[count:], self._beside),
        )
        return sum(rate.value for rate in rates) / len(rates)

    def picture(self, masks: Sequence[MaskSet]) -> Image.Image:
        """See `Validator`; one column a pair, the categories in turn, then as many things to preserve."""
        in_turn_of_all = [pair.prompt for row in zip(*self._erased, strict=True) for pair in row]
        prompts = in_turn_of_all[:COLUMNS] + [ask.prompt for ask in self._beside[:COLUMNS]]
        base = draw(self._pipe, prompts, VALIDATION_SEED + 300_000)
        rows = base, self._draw(prompts, compose(*masks), 300_000)
        width, height = rows[0][0].size
        grid = Image.new("RGB", (len(prompts) * width, len(rows) * height))
        for y, row in enumerate(rows):
            for x, image in enumerate(row):
                grid.paste(image, (x * width, y * height))
        return grid

    def _found(self, category: int, masks: MaskSet) -> float:
        pairs, target = self._erased[category], self._targets[category]
        verdicts = self._judge(self._draw([pair.prompt for pair in pairs], masks, 200_000 * (category + 1)))
        if target.style:
            return float(verdicts.in_style([target.style] * len(pairs)).mean())
        return float(verdicts.found([pair.concept or "" for pair in pairs]).mean())

    def _draw(self, prompts: list[str], masks: MaskSet, shift: int) -> list[Any]:
        # A run that has only warmed up masks nothing, which is no mask set to apply.
        with apply_masks_(self._pipe.transformer, masks) if masks else nullcontext():
            return draw(self._pipe, prompts, VALIDATION_SEED + shift)
