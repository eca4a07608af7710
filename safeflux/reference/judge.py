"""The judge: says what a picture of the embedded model shows. An ONNX classifier, trained on real renderings only."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeflux.reference.vocabulary import vocabulary
from safeflux.runtime import open_session

JUDGE = Path(__file__).parent / "judge.onnx"


@dataclass(frozen=True)
class Verdicts:
    """What the judge says of B pictures, all float32.

    Attributes:
        concepts: Logits (B, concepts), each concept by itself.
        styles: Logits (B, styles), one of them.
        backgrounds: Logits (B, backgrounds), one of them.
        features: Activations (B, D) before the last layer, from which all logits come: where pictures lie near each
            other that look alike to the judge.
    """

    concepts: npt.NDArray[np.float32]
    styles: npt.NDArray[np.float32]
    backgrounds: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]

    def found(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """For picture b, whether concept `names[b]` is found in it: probability over one half."""
        index = [vocabulary().names.index(name) for name in names]
        return self.concepts[np.arange(len(index)), index] > 0

    def in_style(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """For picture b, whether `names[b]` is the likeliest art style of all."""
        return np.asarray(self.styles.argmax(axis=1) == [vocabulary().styles.index(name) for name in names])

    def top(self, count: int) -> list[set[str]]:
        """For each picture, the names of the `count` likeliest concepts."""
        order = np.argsort(-self.concepts, axis=1)[:, :count]
        return [{vocabulary().names[k] for k in row} for row in order]


class Judge:
    """Runs the classifier with ONNX Runtime."""

    def __init__(self, path: Path = JUDGE) -> None:
        self._session = open_session(path)

    def __call__(self, images: Sequence[Image.Image] | npt.NDArray[np.float32], batch: int = 128) -> Verdicts:
        """Judge pictures: PIL images of 64 x 64, or float32 (B, 3, 64, 64) in [0, 1]."""
        if not isinstance(images, np.ndarray):
            pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
            images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) / np.float32(255)
        outputs = [field.name for field in fields(Verdicts)]
        parts = [
            self._session.run(outputs, {"images": np.ascontiguousarray(images[k : k + batch])})
            for k in range(0, len(images), batch)
        ]
        return Verdicts(*(np.concatenate(column) for column in zip(*parts, strict=True)))
