"""The bench: the embedded model or one of its kind, its judge and fixed questions; many masks, the same pictures.

The base model's pictures are drawn and judged once, when a question is first asked, and serve every mask set after it:

    bench = Bench(load_pipeline(), Judge())
    for masks in candidates:
        print(bench.measure(masks, ["weapons"]).harmonic)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from safeflux.errors import ConfigError, ModelError
from safeflux.evaluation.answers import Answer, Pair
from safeflux.evaluation.figures import Figures, Shares
from safeflux.evaluation.questions import KEPT, MAX_PICTURES, Question, Sizes, neutral, questions_of, target_of
from safeflux.evaluation.tally import TwoNoises, tally
from safeflux.families.sites import find_sites
from safeflux.masks.mask_set import MaskSet, check_fit
from safeflux.model.apply import apply_masks_
from safeflux.model.weights import fingerprint
from safeflux.reference.judge import Judge
from safeflux.reference.measure import BATCH, Ask, draw
from safeflux.reference.vocabulary import Target

Progress = Callable[[str, int, int], None]
"""Called with a name for the work in progress, how much of it is done, and of how much."""

TWO_NOISES = 200
"""Prompts at most that the base model draws from a second noise, for the scale of similarity."""


class Bench:
    """The embedded model without masks, its judge, and how much is asked.

    Args:
        pipe: The embedded model, as `load_pipeline` loads it: nothing masked.
        judge: Its judge, whose vocabulary the questions are from.
        sizes: Pictures of each kind of question.
        seed: Of prompts and noises, 0 to 4095; each seed has its own.
        progress: Called with the number of pictures drawn so far.
    """

    def __init__(
        self,
        pipe: Any,
        judge: Judge,
        *,
        sizes: Sizes | None = None,
        seed: int = 0,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self.pipe, self.judge, self.sizes, self.seed = pipe, judge, sizes or Sizes(), seed
        self._progress = progress
        self._fingerprint = fingerprint(pipe.transformer)
        self._sites = find_sites(pipe.transformer)
        self._base: dict[str, tuple[tuple[Ask, ...], Answer]] = {}
        self._other_noises: list[Image.Image] | None = None

    def measure(self, masks: MaskSet, targets: Sequence[str | Target]) -> Figures:
        """Draw under the masks, judge, and compare with the base model on the same prompts and noises.

        Args:
            masks: True = keep; written in place while it draws, then taken out again.
            targets: The targets to erase, or their names in the vocabulary; everything else counts as kept.

        Raises:
            ConfigError: No target, or one that the vocabulary does not have.
            ModelError: The model's weights are others than when the bench was made.
            MaskMismatchError: The masks do not fit the model, or there are none.
        """
        check_fit(masks, self._sites)  # before anything is drawn

        @contextmanager
        def masked() -> Iterator[Any]:
            with apply_masks_(self.pipe.transformer, masks):
                yield self.pipe

        return self.compare(masked(), targets, Shares.of(masks, self._sites))

    def compare(
        self, drawing: AbstractContextManager[Any], targets: Sequence[str | Target], shares: Shares | None = None
    ) -> Figures:
        """Draw in some other way than the base model does, judge, and compare the same prompts and noises.

        Args:
            drawing: Opened after the base model has drawn. It gives what is called like the pipeline, and leaves the
                pipeline as it was.
            targets: As for `measure`.
            shares: How much is masked in it, for the figures; None for nothing.

        Raises:
            ConfigError: No target, or one that the vocabulary does not have.
            ModelError: The model's weights are others than when the bench was made.
        """
        erased = [target_of(one) if isinstance(one, str) else one for one in dict.fromkeys(targets)]
        if not erased:
            raise ConfigError("expected at least one category to measure, got none")
        questions = questions_of(erased, self.sizes, self.seed, self.judge.words)
        self._check_model()
        base = self._base_answers(questions)
        with drawing as pipe:
            changed = self._draw(pipe, "masked model", questions)
        pairs = {name: Pair(question.asks, base[name], changed[name]) for name, question in questions.items()}
        return tally(erased, pairs, shares or Shares({}), self._two_noises())

    def _check_model(self) -> None:
        if fingerprint(self.pipe.transformer) != self._fingerprint:
            raise ModelError(
                "the model's weights changed since this bench was made, so its base pictures are another model's; "
                "undo what was applied, or make a new bench"
            )

    def _two_noises(self) -> TwoNoises:
        """The base model's pictures of some neutral prompts from their noises, and from others; drawn once."""
        asks, answer = self._base[KEPT[0]]
        prompts = [ask.prompt for ask in asks[:TWO_NOISES]]
        if self._other_noises is None:
            first = neutral(self.sizes.kept, self.seed, self.judge.words)[0].first_seed + MAX_PICTURES // 2
            self._other_noises = draw(self.pipe, prompts, first)
        return answer.images[: len(prompts)], self._other_noises

    def _base_answers(self, questions: Mapping[str, Question]) -> dict[str, Answer]:
        """From the cache; missing ones are drawn. An answer to more prompts serves a question that is its beginning."""
        missing = {
            name: question
            for name, question in questions.items()
            if name not in self._base or self._base[name][0][: len(question.asks)] != question.asks
        }
        drawn = self._draw(self.pipe, "base model", missing)
        self._base |= {name: (missing[name].asks, answer) for name, answer in drawn.items()}
        return {name: self._base[name][1].take(np.arange(len(q.asks))) for name, q in questions.items()}

    def _draw(self, pipe: Any, what: str, questions: Mapping[str, Question]) -> dict[str, Answer]:
        done, total = 0, sum(len(question.asks) for question in questions.values())
        answers = {}

        def drawn(count: int) -> None:
            nonlocal done
            done += count
            self._progress(what, done, total)

        for some in _packed(questions):
            prompts = [ask.prompt for question in some.values() for ask in question.asks]
            seeds = [question.first_seed + k for question in some.values() for k in range(len(question.asks))]
            images = iter(draw(pipe, prompts, seeds, drawn=drawn))
            for name, question in some.items():
                own = list(islice(images, len(question.asks)))
                # Only these are compared pixel by pixel; all pictures of a long series would fill the memory.
                answers[name] = Answer(self.judge(own), own if question.is_neutral else ())
        return answers


def _packed(questions: Mapping[str, Question]) -> Iterator[dict[str, Question]]:
    """Whole questions, in order, enough to fill a batch: many short ones one by one take three times as long."""
    some: dict[str, Question] = {}
    for name, question in questions.items():
        some[name] = question
        if sum(len(one.asks) for one in some.values()) >= BATCH:
            yield some
            some = {}
    if some:
        yield some
