"""Validation during a run: pictures that the model draws under the masks, and the judge of the embedded model.

Prompts are made as in training, with its words and its things to preserve; the noises are others. The held-out words
and things are left to the evaluation.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.judged import erased_things, judged_targets, things_to_preserve
from safeflux.trainer.asked.options import call_of
from safeflux.trainer.asked.prompts import Pair, PromptSource
from safeflux.trainer.run.base import masked

from safeflux.cached import cached_property
from safeflux.evaluation.answers import Answer
from safeflux.evaluation.answers import Pair as Answers
from safeflux.evaluation.fidelity import beside_base
from safeflux.evaluation.tally import traces
from safeflux.masks.mask_set import MaskSet, compose
from safeflux.reference.judge import Judge, Verdicts
from safeflux.reference.measure import concept_right, draw, in_turn, other_found, pair_asks, single_asks
from safeflux.reference.vocabulary import Target, vocabulary

VALIDATION_SEED = 50_000_000
"""First seed of the noises; a training noise has a 62-bit random seed, so that meeting one is out of the question."""

SECOND_LOOK = 50_000
"""What the noises of a second look at a category are shifted by."""

AGAIN = 150_000
"""What the noises are shifted by from which the base model draws things to preserve a second time, for the scale."""

COLUMNS = 8
"""Columns of each sort in the picture of a validation."""


@dataclass(frozen=True)
class Validation:
    """The figures of the masks of a run, as shares of pictures."""

    found: tuple[float, ...]
    """Each category, where a prompt asks for it: the larger of the shares under its own mask and under all masks."""
    right: float
    """Things to preserve: alone (neutral things, and those of categories whose mask is off) and beside an erased thing
    (neutral things). The mean of the two shares, the smallest of those under each mask and under all masks."""
    known: tuple[float, ...] = ()
    """How much of each category's pictures was known in the last rounds; empty for a run that takes words alone."""

    def is_erased(self, target: float, known: float = 1.0) -> list[bool]:
        """Each category: whether it is found, and its pictures known, seldom enough."""
        shares = self.known or (0.0,) * len(self.found)
        return [found <= target and share <= known for found, share in zip(self.found, shares, strict=True)]

    def score(self, target: float, known: float = 1.0) -> tuple[bool, float]:
        """The order of masks: whether every category is gone, then the share preserved less what is left.

        Args:
            target: Share of pictures in which a category that is gone may be found.
            known: Share of its pictures that may be known.

        Examples:
            >>> Validation((0.01, 0.0), 0.9).score(0.01)
            (True, 0.9)
            >>> near, far, spoilt = (Validation((f,), right) for f, right in ((0.11, 0.9), (0.21, 0.9), (0.11, 0.7)))
            >>> near.score(0.01) > far.score(0.01) > spoilt.score(0.01)
            True
            >>> Validation((0.0,), 1.0, known=(0.5,)).score(0.01, known=0.25)
            (False, 0.75)
        """
        missed = sum(max(0.0, found - target) for found in self.found)
        missed += sum(max(0.0, share - known) for share in self.known)
        return missed == 0, self.right - missed


Masks = Mapping[str, MaskSet]
"""One mask set for each category."""


class Validator(Protocol):
    """Looks at pictures."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What the mask files say of it beside the figures."""

    @property
    def notes(self) -> Sequence[str]:
        """What is printed of it before the first round, a line each."""

    def found(self, category: str, masks: MaskSet, look: int = 0) -> float:
        """How often a category is found under a mask set, in prompts that ask for it.

        The larger of the shares of prompts for it alone, and beside another thing.

        Args:
            category: The category.
            masks: True = keep.
            look: 1 for a second look, at pictures of other prompts and noises.
        """

    def right(self, erased: Collection[str], masks: MaskSet) -> float:
        """How often the things that a mask set for some categories should preserve are found."""

    def beside_base(self, category: str) -> dict[str, Any]:
        """What mask files say of the pictures that `found` drew last of a category, and `right` of other things.

        Only pictures of the base model are drawn for this, to be compared with them.
        """

    def picture(self, masks: MaskSet) -> Image.Image:
        """Some pictures of both sorts without masks, and below them the same under a mask set."""


def validate(
    validator: Validator, masks: Masks, trained: Sequence[str], looked: Callable[[str], None] = lambda category: None
) -> Validation:
    """Ask both questions: the first for every trained category, the second under every mask.

    Args:
        validator: Looks.
        masks: All masks.
        trained: The categories of the run.
        looked: Called with each of these when its own mask, alone, has just been looked at.
    """
    shares, kept = dict.fromkeys(trained, 0.0), 1.0
    for asked, state in _alone_and_all(masks, masks):
        for name in trained:
            if name in asked:
                shares[name] = max(shares[name], validator.found(name, state))
        kept = min(kept, validator.right(asked, state))
        if len(asked) == 1 and (name := next(iter(asked))) in shares:
            looked(name)
    return Validation(tuple(shares.values()), kept)


def confirm(validator: Validator, masks: Masks, seen: Validation, trained: Sequence[str]) -> Validation:
    """The figures with those of a second look, where they are larger.

    Args:
        validator: Looks.
        masks: All masks.
        seen: What the first look gave.
        trained: The categories of the run, in the order of `seen`.
    """
    again = (found(validator, name, masks, looks=(1,)) for name in trained)
    return replace(seen, found=tuple(map(max, seen.found, again)))


def found(validator: Validator, category: str, masks: Masks, looks: Sequence[int] = (0,)) -> float:
    """How often a category is found: the largest of the shares under its own mask and under all masks, in each look."""
    states = [state for _, state in _alone_and_all([category], masks)]
    return max(validator.found(category, state, look) for look in looks for state in states)


def larger_share(is_there: npt.NDArray[np.bool_], is_alone: Sequence[bool]) -> float:
    """The larger share of pictures in which a thing is found: of those that ask for it alone, or for another one too.

    Beside another one it is the first to go, and the mean of both would hide how often it is found alone.

    Examples:
        >>> larger_share(np.array([True, False, False, False]), [True, True, False, False])
        0.5
    """
    alone = np.array(is_alone)
    return max(float(is_there[part].mean()) for part in (alone, ~alone) if part.any())


def right(validator: Validator, asked: Collection[str], masks: Masks) -> float:
    """How often things to preserve are found: the smallest of the shares under each asked mask and under all masks."""
    return min(validator.right(*state) for state in _alone_and_all(asked, masks))


class JudgeValidator:
    """The validator by the embedded model's judge, which looks for the concepts of the configuration."""

    about: Mapping[str, Any] = MappingProxyType({})
    notes: Sequence[str] = ()

    def __init__(
        self, pipe: Any, judge: Judge, config: TrainConfig, beside: Mapping[str, Collection[str]] = MappingProxyType({})
    ) -> None:
        """Fix all prompts of the run's validations.

        Args:
            pipe: A model that draws what the judge knows.
            judge: Its judge.
            config: The run.
            beside: Category of a mask that stays as it is -> the concepts that it erases.

        Raises:
            ConfigError: The judge does not know a concept of the run.
        """
        self._pipe, self._judge, self._call = pipe, judge, call_of(config)
        words, count, source = vocabulary(), config.validation_prompts, PromptSource(config)
        rng, other = (np.random.default_rng((config.seed, VALIDATION_SEED, *more)) for more in ((), (1,)))
        self._targets, self._gone = judged_targets(config), erased_things(config, beside)
        targets = list(self._targets.values())
        known = things_to_preserve(self._gone)
        things = [known[k] for k in rng.permutation(len(known))]

        def erased(target: Target, rng: np.random.Generator) -> list[Pair]:
            if not target.style:
                return source.erase(target.name, rng, count)
            asks = single_asks(words, in_turn(things, count), 1, rng, style=target.style)
            return [Pair(ask.prompt, "") for ask in asks]  # under all masks, no other thing is left to have a style

        self._looks = tuple({target.name: erased(target, one) for target in targets} for one in (rng, other))
        self._erased = self._looks[0]
        concepts = [concept for target in targets for concept in target.concepts] or things
        self._alone = single_asks(words, in_turn(things, -(-count // 2)), 1, rng)
        self._beside = pair_asks(words, in_turn(concepts, -(-count // 2)), things, 1, rng)
        of_categories = [concept for target in words.targets.values() for concept in target.concepts]
        self._of_categories = single_asks(words, in_turn(of_categories, -(-count // 2)), 1, rng)
        self._base: list[Any] = []
        self._looked: dict[str, Verdicts] = {}
        self._kept: list[Image.Image] = []

    def found(self, category: str, masks: MaskSet, look: int = 0) -> float:
        """See `Validator`."""
        asked, style = self._looks[look][category], self._targets[category].style
        verdicts = self._look(category, masks, look)
        if look == 0:
            self._looked[category] = verdicts
        things = [pair.concept or "" for pair in asked]
        is_there = verdicts.in_style([style] * len(asked)) if style else verdicts.found(things)
        return larger_share(is_there, [pair.is_alone for pair in asked])

    def right(self, erased: Collection[str], masks: MaskSet) -> float:
        """See `Validator`."""
        gone = frozenset[str]().union(*(self._gone[name] for name in erased))
        alone = self._alone + [ask for ask in self._of_categories if ask.concept not in gone]
        images = self._draw([ask.prompt for ask in alone + self._beside], masks, 100_000)
        self._kept = images[: len(self._alone)]
        rates = (
            concept_right(self._judge, images[: len(alone)], alone),
            other_found(self._judge, images[len(alone) :], self._beside),
        )
        return sum(rate.value for rate in rates) / len(rates)

    def beside_base(self, category: str) -> dict[str, Any]:
        """See `Validator`; of the neutral things alone that are not in an erased style. Empty without any."""
        style = self._targets[category].style
        places = [k for k, ask in enumerate(self._alone) if ask.style != style]
        if not places:
            return {}
        base, again = ([images[k] for k in places] for images in self._plain)
        names = [style or pair.concept or "" for pair in self._erased[category]]
        pair = Answers((), Answer(self._look(category, MaskSet({}))), Answer(self._looked[category]))
        seen = traces(names, pair, self._judge(base))
        things = [self._alone[k].concept for k in places]
        return beside_base(things, base, [self._kept[k] for k in places], again, seen)

    @cached_property
    def _plain(self) -> tuple[list[Image.Image], list[Image.Image]]:
        """The base model's pictures of the things to preserve alone, and the same from other noises."""
        prompts = [ask.prompt for ask in self._alone]
        return self._draw(prompts, MaskSet({}), 100_000), self._draw(prompts, MaskSet({}), AGAIN)

    def _look(self, category: str, masks: MaskSet, look: int = 0) -> Verdicts:
        """The judge's verdicts on pictures that ask for a category."""
        shift = 200_000 * (list(self._erased).index(category) + 1) + SECOND_LOOK * look
        return self._judge(self._draw([pair.prompt for pair in self._looks[look][category]], masks, shift))

    def picture(self, masks: MaskSet) -> Image.Image:
        """See `Validator`; one column a pair, the categories in turn, then as many things to preserve."""
        in_turn_of_all = [pair.prompt for row in zip(*self._erased.values(), strict=True) for pair in row]
        prompts = in_turn_of_all[:COLUMNS] + [ask.prompt for ask in self._beside[:COLUMNS]]
        if not self._base:  # the same in every round
            self._base = self._draw(prompts, MaskSet({}), 300_000)
        return grid([self._base, self._draw(prompts, masks, 300_000)])

    def _draw(self, prompts: list[str], masks: MaskSet, shift: int) -> list[Any]:
        with masked(self._pipe.transformer, masks):
            return draw(self._pipe, prompts, VALIDATION_SEED + shift, settings=self._call)


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of as many pictures of one size, as one picture."""
    width, height = rows[0][0].size
    whole = Image.new("RGB", (len(rows[0]) * width, len(rows) * height))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            whole.paste(image, (x * width, y * height))
    return whole


def _alone_and_all(asked: Collection[str], masks: Masks) -> list[tuple[Collection[str], MaskSet]]:
    """Some masks one by one and, if there are several, all of them combined; each with its categories."""
    alone: list[tuple[Collection[str], MaskSet]] = [([name], masks[name]) for name in asked]
    return [*alone, (masks, compose(*masks.values()))] if len(masks) > 1 else alone
