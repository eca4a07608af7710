"""The judge of the embedded model as a detector."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeflux.detectors.base import Detector, Scores, Wanted, activate, same_threshold
from safeflux.errors import ConfigError
from safeflux.reference.judge import Judge, Verdicts
from safeflux.reference.vocabulary import vocabulary

SIZE = 64
"""Pixels a side; resizing a picture of that size copies it."""


class JudgeDetector(Detector):
    """The judge of the embedded model: it knows the vocabulary's concepts, and looks at pictures in 64 x 64.

    Args:
        judge: The judge.
        styles: Art styles of the vocabulary that it looks for too; one is found where it is the likeliest of all.
    """

    is_calibrated = True  # trained with one half as the boundary

    def __init__(self, judge: Judge, styles: Sequence[str] = ()) -> None:
        known = vocabulary()
        self.name, self.concepts, self._judge = "judge", (*known.names, *styles), judge
        self.thresholds = same_threshold(self.concepts, 0.5)

    def __call__(self, images: Sequence[Image.Image]) -> Scores:
        """Score B pictures, float32 (B, concepts): each concept by itself, a style against the likeliest other one."""
        return activate(self._verdicts(images).ahead(self.concepts), "sigmoid")

    def features(self, images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
        """The activations before the judge's last layer, float32 (B, D)."""
        return self._verdicts(images).features

    def likeliest(self, images: Sequence[Image.Image], looks: Mapping[str, str]) -> npt.NDArray[np.str_] | None:
        """See `Detector`: it knows the vocabulary's art styles and backgrounds by their names."""
        verdicts, names = self._verdicts(images), list(looks)
        known = vocabulary()
        for own, logits in ((known.styles, verdicts.styles), (known.background_names, verdicts.backgrounds)):
            if set(names) <= set(own):
                return np.array(names)[logits[:, [own.index(name) for name in names]].argmax(axis=1)]
        return None

    def _verdicts(self, images: Sequence[Image.Image]) -> Verdicts:
        return self._judge([image.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in images])


def open_judge(argument: str, wanted: Wanted) -> JudgeDetector:
    """`judge`; of the vocabulary's styles it looks for those that are wanted.

    Raises:
        ConfigError: It is given an argument, labels or preprocessing.
    """
    if argument or wanted.labels or wanted.settings:
        raise ConfigError("detector 'judge' brings its own labels and preprocessing; leave those options out")
    return JudgeDetector(Judge(), [style for style in vocabulary().styles if style in wanted.concepts])
