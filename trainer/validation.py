"""What a run looks at on the way: pictures of the embedded model under the masks, by its judge.

Prompts are of the training's sort (its words, its things to preserve), the noises are not the training's. The held-out
words and things are left to the evaluation.
"""

from collections.abc import Collection, Mapping, Sequence
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
from safeflux.reference.vocabulary import known_concepts, vocabulary

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
    """What is to be preserved: alone (neutral things, and those of categories whose mask is off) and beside what is
    erased (neutral things). The mean of the two shares, the smallest of those under each mask and under all masks."""

    def score(self, target: float) -> tuple[bool, float]:
        """What ranks masks: whether every category is gone first, then what is preserved less what is still found.

        Examples:
            >>> Validation((0.01, 0.0), 0.9).score(0.01)
            (True, 0.9)
            >>> near, far, spoilt = (Validation((f,), right) for f, right in ((0.11, 0.9), (0.21, 0.9), (0.11, 0.7)))
            >>> near.score(0.01) > far.score(0.01) > spoilt.score(0.01)
            True
        """
        missed = sum(max(0.0, found - target) for found in self.found)
        return missed == 0, self.right - missed


Masks = Mapping[str, MaskSet]
"""One mask set for each category."""


class Validator(Protocol):
    """Looks at pictures."""

    def found(self, category: str, masks: MaskSet) -> float:
        """How often a category is found under a mask set, in prompts that ask for it."""

    def right(self, erased: Collection[str], masks: MaskSet) -> float:
        """How often what a mask set for some categories should preserve is found."""

    def picture(self, masks: MaskSet) -> Image.Image:
        """Some pictures of both sorts without masks, and below them the same under a mask set."""


def validate(validator: Validator, masks: Masks, trained: Sequence[str]) -> Validation:
    """Ask both questions: the first for every trained category, the second under every mask."""
    return Validation(tuple(found(validator, name, masks) for name in trained), right(validator, masks, masks))


def found(validator: Validator, category: str, masks: Masks) -> float:
    """How often a category is found: the larger share of under its own mask and under all masks."""
    return max(validator.found(category, state) for _, state in _alone_and_all([category], masks))


def right(validator: Validator, asked: Collection[str], masks: Masks) -> float:
    """How often what is to be preserved is found: the smallest share of under each asked mask and under all masks."""
    return min(validator.right(*state) for state in _alone_and_all(asked, masks))


class JudgeValidator:
    """The validator of the embedded model."""

    def __init__(self, pipe: Any, judge: Judge, config: TrainConfig) -> None:
        self._pipe, self._judge = pipe, judge
        words, count, source = vocabulary(), config.validation_prompts, PromptSource(config)
        rng = np.random.default_rng((config.seed, VALIDATION_SEED))
        known = known_concepts()
        things = [known[k] for k in rng.permutation(len(known))]
        targets = [words.targets[name] for name in config.categories]
        self._erased = {  # a style on neutral things: under all masks, no other is there to have one
            target.name: [
                (ask.prompt, "") for ask in single_asks(words, in_turn(things, count), 1, rng, style=target.style)
            ]
            if target.style
            else [(pair.prompt, pair.concept or "") for pair in source.erase(target.name, rng, count)]
            for target in targets
        }
        concepts = [concept for target in targets for concept in target.concepts] or things
        self._alone = single_asks(words, in_turn(things, -(-count // 2)), 1, rng)
        self._beside = pair_asks(words, in_turn(concepts, -(-count // 2)), things, 1, rng)
        of_categories = [concept for target in words.targets.values() for concept in target.concepts]
        self._of_categories = single_asks(words, in_turn(of_categories, -(-count // 2)), 1, rng)

    def found(self, category: str, masks: MaskSet) -> float:
        """See `Validator`."""
        asked, style = self._erased[category], vocabulary().targets[category].style
        shift = 200_000 * (list(self._erased).index(category) + 1)
        verdicts = self._judge(self._draw([prompt for prompt, _ in asked], masks, shift))
        is_there = verdicts.in_style([style] * len(asked)) if style else verdicts.found([name for _, name in asked])
        return float(is_there.mean())

    def right(self, erased: Collection[str], masks: MaskSet) -> float:
        """See `Validator`."""
        words = vocabulary()
        alone = self._alone + [ask for ask in self._of_categories if words[ask.concept].category not in erased]
        images = self._draw([ask.prompt for ask in alone + self._beside], masks, 100_000)
        rates = (
            concept_right(self._judge, images[: len(alone)], alone),
            other_found(self._judge, images[len(alone) :], self._beside),
        )
        return sum(rate.value for rate in rates) / len(rates)

    def picture(self, masks: MaskSet) -> Image.Image:
        """See `Validator`; one column a pair, the categories in turn, then as many things to preserve."""
        in_turn_of_all = [prompt for row in zip(*self._erased.values(), strict=True) for prompt, _ in row]
        prompts = in_turn_of_all[:COLUMNS] + [ask.prompt for ask in self._beside[:COLUMNS]]
        base = draw(self._pipe, prompts, VALIDATION_SEED + 300_000)
        rows = base, self._draw(prompts, masks, 300_000)
        width, height = rows[0][0].size
        grid = Image.new("RGB", (len(prompts) * width, len(rows) * height))
        for y, row in enumerate(rows):
            for x, image in enumerate(row):
                grid.paste(image, (x * width, y * height))
        return grid

    def _draw(self, prompts: list[str], masks: MaskSet, shift: int) -> list[Any]:
        # A run that has only warmed up masks nothing, which is no mask set to apply.
        with apply_masks_(self._pipe.transformer, masks) if masks else nullcontext():
            return draw(self._pipe, prompts, VALIDATION_SEED + shift)


def _alone_and_all(asked: Collection[str], masks: Masks) -> list[tuple[Collection[str], MaskSet]]:
    """Some masks one by one and, where there are several in all, all of them AND-ed; each with what it erases."""
    alone: list[tuple[Collection[str], MaskSet]] = [([name], masks[name]) for name in asked]
    return [*alone, (masks, compose(*masks.values()))] if len(masks) > 1 else alone
