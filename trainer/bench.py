"""The bench: the embedded model, its judge and fixed questions; many mask sets are measured on the same pictures.

The base model's pictures are drawn and judged once, when a question is first asked, and serve every mask set after it:

    bench = Bench(load_pipeline(), Judge())
    for masks in candidates:
        print(bench.measure(masks, ["weapons"]).harmonic)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from safeflux.trainer.answers import Answer, Pair
from safeflux.trainer.figures import Figures, Shares
from safeflux.trainer.questions import Question, Sizes, questions_of, target_of
from safeflux.trainer.tally import tally

from safeflux.apply import apply_masks_
from safeflux.errors import ConfigError, ModelError
from safeflux.masks import MaskSet, check_fit
from safeflux.reference.judge import Judge
from safeflux.reference.measure import draw
from safeflux.sites import find_sites
from safeflux.weights import fingerprint

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


class Bench:
    """The embedded model without masks, its judge, and how much is asked.

    Args:
        pipe: The embedded model, as `load_pipeline` loads it: nothing masked.
        judge: Its judge.
        sizes: Pictures of each kind of question.
        seed: Of prompts and noises, 0 to 4095; each seed has its own.
        progress: Told how many pictures are drawn.
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
        self._base: dict[str, Answer] = {}

    def measure(self, masks: MaskSet, targets: Sequence[str]) -> Figures:
        """Draw under the masks, judge, and compare with the base model on the same prompts and noises.

        Args:
            masks: True = keep; written in place while it draws, then taken out again.
            targets: What the masks are to erase, by the vocabulary's names; everything else counts as kept.

        Raises:
            ConfigError: No target, or one that the vocabulary does not have.
            ModelError: The model's weights are others than when the bench was made.
            MaskMismatchError: The masks do not fit the model, or there are none.
        """
        erased = [target_of(name) for name in dict.fromkeys(targets)]
        if not erased:
            raise ConfigError("expected at least one category to measure, got none")
        questions = questions_of(erased, self.sizes, self.seed)
        self._check_model()
        check_fit(masks, self._sites)  # before anything is drawn
        base = self._base_answers(questions)
        with apply_masks_(self.pipe.transformer, masks):
            masked = self._draw("masked model", questions)
        pairs = {name: Pair(question.asks, base[name], masked[name]) for name, question in questions.items()}
        shares = Shares.of(masks, self._sites)
        return tally(erased, pairs, shares)

    def _check_model(self) -> None:
        if fingerprint(self.pipe.transformer) != self._fingerprint:
            raise ModelError(
                "the model's weights changed since this bench was made, so its base pictures are another model's; "
                "undo what was applied, or make a new bench"
            )

    def _base_answers(self, questions: Mapping[str, Question]) -> dict[str, Answer]:
        """From the cache, drawing first what is not there; an answer with more pictures serves a shorter question."""
        missing = {
            name: question
            for name, question in questions.items()
            if name not in self._base or len(self._base[name].verdicts.concepts) < len(question.asks)
        }
        self._base |= self._draw("base model", missing)
        return {name: self._base[name].take(np.arange(len(q.asks))) for name, q in questions.items()}

    def _draw(self, what: str, questions: Mapping[str, Question]) -> dict[str, Answer]:
        done, total = 0, sum(len(question.asks) for question in questions.values())
        answers = {}

        def drawn(count: int) -> None:
            nonlocal done
            done += count
            self._progress(what, done, total)

        for name, question in questions.items():
            images = draw(self.pipe, [ask.prompt for ask in question.asks], question.first_seed, drawn=drawn)
            # Only of these is more asked than what the judge says; all pictures of a long series would fill the memory.
            answers[name] = Answer(self.judge(images), images if question.is_neutral else ())
        return answers
