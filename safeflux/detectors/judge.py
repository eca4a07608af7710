"""The judge of the embedded model as a detector."""

from collections.abc import Sequence

from PIL import Image

from safeflux.detectors.base import Detector, Scores, Wanted, activate, same_threshold
from safeflux.errors import ConfigError
from safeflux.reference.judge import Judge
from safeflux.reference.vocabulary import vocabulary

SIZE = 64
"""Pixels a side; resizing a picture of that size copies it."""


class JudgeDetector(Detector):
    """The judge of the embedded model: it knows the vocabulary's concepts, and looks at pictures in 64 x 64."""

    is_calibrated = True  # trained with one half as the boundary

    def __init__(self, judge: Judge) -> None:
        self.name, self.concepts, self._judge = "judge", vocabulary().names, judge
        self.thresholds = same_threshold(self.concepts, 0.5)

    def __call__(self, images: Sequence[Image.Image]) -> Scores:
        """Score B pictures: each concept's probability by itself, float32 (B, concepts)."""
        small = [image.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in images]
        return activate(self._judge(small).concepts, "sigmoid")


def open_judge(argument: str, wanted: Wanted) -> JudgeDetector:
    """`judge`.

    Raises:
        ConfigError: It is given an argument, labels or preprocessing.
    """
    if argument or wanted.labels or wanted.settings:
        raise ConfigError("detector 'judge' brings its own labels and preprocessing; leave those options out")
    return JudgeDetector(Judge())
