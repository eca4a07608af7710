"""The protocol of all detectors, and what one is asked to look for."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeflux.errors import ConfigError

Scores = npt.NDArray[np.float32]
Activation = Literal["none", "sigmoid", "softmax"]


class Detector(Protocol):
    """Scores pictures for concepts; the unit of the scores is the detector's own.

    Attributes:
        name: The spec that opened it, e.g. `zero-shot:clip-folder`.
        concepts: What it looks for, in the order of the scores.
        thresholds: For each concept, the score above which it counts as found; float32 (concepts,).
        is_calibrated: Whether the thresholds are right as they are. Those of any other detector should be chosen on
            the base model's own pictures (`safeflux.detectors.calibration`).
    """

    name: str
    concepts: tuple[str, ...]
    thresholds: Scores
    is_calibrated: bool = False

    def __call__(self, images: Sequence[Image.Image]) -> Scores:
        """Score B pictures of any size: float32 (B, concepts)."""

    def found(self, images: Sequence[Image.Image], names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Say for each picture and each of N concepts whether it is found there: bool (B, N).

        Raises:
            ConfigError: It knows no concept of that name.
        """
        columns = [self.place_of(name) for name in names]
        return np.asarray(self(images)[:, columns] > self.thresholds[columns])

    def found_each(self, images: Sequence[Image.Image], names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Say for each of B pictures whether a concept of its own is found in it: bool (B,).

        Args:
            images: The pictures.
            names: The concept that each is looked at for, B of them.

        Raises:
            ConfigError: It knows no concept of that name.
        """
        columns = [self.place_of(name) for name in names]
        return np.asarray(self(images)[np.arange(len(columns)), columns] > self.thresholds[columns])

    def features(self, images: Sequence[Image.Image]) -> npt.NDArray[np.floating[Any]] | None:
        """What its scores come from, (B, D): pictures that look alike to it lie near each other there.

        None where that is not known.
        """
        return None

    def likeliest(self, images: Sequence[Image.Image], looks: Mapping[str, str]) -> npt.NDArray[np.str_] | None:
        """Say which of some looks each of B pictures has, such as art styles: their names, (B,).

        None where it cannot tell.

        Args:
            images: The pictures.
            looks: Name -> words for it: `noto` -> `noto style`.
        """
        return None

    def place_of(self, name: str) -> int:
        """The column of a concept.

        Raises:
            ConfigError: It knows no concept of that name.
        """
        if name in self.concepts:
            return self.concepts.index(name)
        near = difflib.get_close_matches(name, self.concepts, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(self.concepts[:12])}"
        raise ConfigError(f"label {name!r}: the detector {self.name} has none of that name; {hint}")

    def threshold_of(self, name: str) -> float:
        """The threshold of a concept.

        Raises:
            ConfigError: It knows no concept of that name.
        """
        return float(self.thresholds[self.place_of(name)])

    def describe(self) -> dict[str, Any]:
        """What a report says of it: its name and its thresholds, as one number where they are all the same."""
        thresholds = [float(value) for value in self.thresholds]
        is_one = len(set(thresholds)) == 1
        return {
            "detector": self.name,
            "threshold": thresholds[0] if is_one else dict(zip(self.concepts, thresholds, strict=True)),
            "is_calibrated": self.is_calibrated,
        }


@dataclass(frozen=True)
class Wanted:
    """What a detector is opened for. One with fixed labels reads only what belongs to its kind.

    Attributes:
        concepts: Concept -> the words for it, as they stand in a prompt: `a dagger`.
        neutral: Words for other things that pictures show; a zero-shot detector compares with them.
        templates: Sentences whose `{}` the words fill. They should resemble the pictures: photographs, drawings.
        labels: A text file with the labels of an ONNX classifier, one a line; without, `FILE.txt` beside `FILE.onnx`.
        settings: Preprocessing of an ONNX classifier; see `make_preprocessing`.
        device: Where a detector of transformers runs, e.g. `cuda`.
    """

    concepts: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    neutral: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("a photo of {}",)
    labels: Path | None = None
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    device: str = "cpu"


def activate(values: Scores, activation: Activation) -> Scores:
    """Outputs (B, labels) to scores of the same shape, without overflow."""
    if activation == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(values / 2)), dtype=np.float32)
    if activation == "softmax":
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)
    return np.asarray(values, dtype=np.float32)


def same_threshold(concepts: Sequence[str], threshold: float) -> Scores:
    """One threshold for all concepts: float32 (concepts,)."""
    return np.full(len(concepts), threshold, dtype=np.float32)
