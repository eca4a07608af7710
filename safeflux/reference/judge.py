"""The judge of the embedded model's pictures: an ONNX classifier, trained on real renderings only."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeflux.reference.onnx_session import open_session
from safeflux.reference.vocabulary import Vocabulary, vocabulary

JUDGE = Path(__file__).parent / "judge.onnx"
OUTPUTS = ("concepts", "styles", "backgrounds", "features")
"""What the classifier gives."""


@dataclass(frozen=True)
class Verdicts:
    """The judge's verdicts on B pictures, all float32.

    Attributes:
        concepts: Logits (B, concepts), each concept by itself.
        styles: Logits (B, styles), one of them.
        backgrounds: Logits (B, backgrounds), one of them.
        features: Activations (B, D) before the last layer, from which all logits come: where pictures lie near each
            other that look alike to the judge.
        words: What the positions of the logits mean.
    """

    concepts: npt.NDArray[np.float32]
    styles: npt.NDArray[np.float32]
    backgrounds: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    words: Vocabulary = field(default_factory=vocabulary)

    def take(self, places: npt.NDArray[np.intp]) -> "Verdicts":
        """The verdicts on some of the pictures."""
        parts: dict[str, Any] = {name: getattr(self, name)[places] for name in OUTPUTS}
        return replace(self, **parts)

    @classmethod
    def join(cls, verdicts: Sequence["Verdicts"]) -> "Verdicts":
        """The verdicts on several batches of pictures, of one judge, in their order."""
        parts: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in verdicts]) for name in OUTPUTS}
        return replace(verdicts[0], **parts)

    def found(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """For picture b, whether concept `names[b]` is found in it: probability over one half."""
        index = [self.words.names.index(name) for name in names]
        return self.concepts[np.arange(len(index)), index] > 0

    def in_style(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """For picture b, whether `names[b]` is the likeliest art style of all."""
        return np.asarray(self.styles.argmax(axis=1) == [self.words.styles.index(name) for name in names])

    def ahead(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """How far concepts and styles are above what counts as found, float32 (B, names).

        The logit of a concept; that of a style less the likeliest other one's.
        """
        return np.column_stack([self._ahead(name) for name in names])

    def _ahead(self, name: str) -> npt.NDArray[np.float32]:
        if name in self.words.names:
            return self.concepts[:, self.words.names.index(name)]
        k = self.words.styles.index(name)
        return np.asarray(self.styles[:, k] - np.delete(self.styles, k, axis=1).max(axis=1))

    def top(self, count: int) -> list[set[str]]:
        """For each picture, the names of the `count` likeliest concepts."""
        order = np.argsort(-self.concepts, axis=1)[:, :count]
        return [{self.words.names[k] for k in row} for row in order]


class Judge:
    """Runs the classifier with ONNX Runtime.

    Attributes:
        words: The vocabulary that it was trained on.

    Args:
        path: Another classifier than that of the embedded model.
        words: The vocabulary that it was trained on, where that is another.
    """

    def __init__(self, path: Path = JUDGE, words: Vocabulary | None = None) -> None:
        self._session, self.words = open_session(path), words or vocabulary()

    def __call__(self, images: Sequence[Image.Image] | npt.NDArray[np.float32], batch: int = 128) -> Verdicts:
        """Judge pictures: PIL images of 64 x 64, or float32 (B, 3, 64, 64) in [0, 1]."""
        if not isinstance(images, np.ndarray):
            pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
            images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) / np.float32(255)
        parts = [
            self._session.run(OUTPUTS, {"images": np.ascontiguousarray(images[k : k + batch])})
            for k in range(0, len(images), batch)
        ]
        concepts, styles, backgrounds, features = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Verdicts(concepts, styles, backgrounds, features, self.words)
