"""A judge's verdicts on pictures that two models drew from the same prompts and noises."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeflux.evaluation.metrics import Bools, Paired
from safeflux.reference.judge import Verdicts
from safeflux.reference.measure import Ask

Check = Callable[[Verdicts, Sequence[Ask]], Bools]
"""A test of judged pictures; `safeflux.reference.measure` has them."""


@dataclass(frozen=True, eq=False)
class Answer:
    """One model's pictures of a set of prompts, judged; `images` is empty where only the verdicts are kept."""

    verdicts: Verdicts
    images: Sequence[Image.Image] = ()

    def take(self, places: npt.NDArray[np.intp]) -> "Answer":
        """The answer to some of the prompts."""
        return Answer(self.verdicts.take(places), [self.images[k] for k in places] if self.images else ())

    @classmethod
    def join(cls, answers: Sequence["Answer"]) -> "Answer":
        """Several answers as one, in their order."""
        verdicts = Verdicts.join([answer.verdicts for answer in answers])
        return cls(verdicts, [image for answer in answers for image in answer.images])


@dataclass(frozen=True, eq=False)
class Pair:
    """The same prompts, answered by the base model and by the masked one."""

    asks: tuple[Ask, ...]
    base: Answer
    masked: Answer

    def rate(self, check: Check) -> Paired:
        """How often a check holds in the pictures of each model."""
        return Paired.of(check(self.base.verdicts, self.asks), check(self.masked.verdicts, self.asks))

    def where(self, wanted: Callable[[Ask], bool]) -> "Pair":
        """The pictures of some of the prompts."""
        places = np.array([k for k, ask in enumerate(self.asks) if wanted(ask)], dtype=np.intp)
        return Pair(tuple(self.asks[k] for k in places), self.base.take(places), self.masked.take(places))

    @classmethod
    def join(cls, pairs: Sequence["Pair"]) -> "Pair":
        """Several sets of prompts as one, in their order."""
        asks = tuple(ask for pair in pairs for ask in pair.asks)
        return cls(asks, Answer.join([pair.base for pair in pairs]), Answer.join([pair.masked for pair in pairs]))
