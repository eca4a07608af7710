"""Validation by any detector: what a run's masks are to erase, looked for in pictures of any model.

The detector's thresholds are chosen on the base model's own pictures, drawn before the first round. What it cannot see
there cannot be shown to be gone, so what it finds and misses there is part of every report.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.prompts import PromptSource
from safeflux.trainer.run.pictures import Pictures
from safeflux.trainer.run.validation import COLUMNS, VALIDATION_SEED

from safeflux.detectors.base import Detector
from safeflux.detectors.calibration import Calibration, calibrate, calibrate_among
from safeflux.detectors.labels import Words, labels_of
from safeflux.detectors.labels import open_for as open_labelled
from safeflux.masks.mask_set import MaskSet

_SMALL = 32  # pixels a side, where pictures are compared as a whole


class DetectorValidator:
    """The validator of any model: a detector looks for the concepts of the configuration."""

    def __init__(self, pipe: Any, detector: Detector, config: TrainConfig) -> None:
        """Fix all prompts, draw them with the base model, and choose the thresholds.

        Args:
            pipe: The pipeline, without masks.
            detector: Opened by `open_for`.
            config: The run.

        Raises:
            ConfigError: The detector has no label for a concept of the run.
        """
        self._pictures = Pictures(pipe, config)
        labels = labels_of(detector, _words_of(config))
        source, count = PromptSource(config), config.validation_prompts
        rng = np.random.default_rng((config.seed, VALIDATION_SEED))
        self._erased = {
            name: [(pair.prompt, labels[name, pair.concept or ""]) for pair in source.erase(name, rng, count)]
            for name in config.categories
        }
        self._kept = [*source.alone(rng, -(-count // 2)), *source.beside(rng, -(-count // 2))]
        self._are_words_known = all(word in detector.concepts for _, word in self._kept)
        self._detector, self.calibrations = self._calibrate(detector)

    @property
    def about(self) -> dict[str, Any]:
        """What the mask files say of it."""
        seen = {name: one.to_json() for name, one in self.calibrations.items()}
        return {"detector": self._detector.name, "on_the_base_model": seen}

    @property
    def notes(self) -> list[str]:
        """What it finds in the base model's pictures, a line a category, and a warning where that is little."""
        own = self._detector.name
        lines = [f"{own}, {name}: {one}" for name, one in self.calibrations.items()]
        return lines + [text for name, one in self.calibrations.items() if (text := one.warning(own, name))]

    def found(self, category: str, masks: MaskSet) -> float:
        """See `Validator`."""
        asked = self._erased[category]
        images = self._pictures.draw([prompt for prompt, _ in asked], masks, self._shift(category))
        return float(self._detector.found_each(images, [label for _, label in asked]).mean())

    def right(self, erased: Collection[str], masks: MaskSet) -> float:
        """See `Validator`. By a detector with labels of its own: how alike the pictures are to the base model's."""
        images = self._pictures.draw([prompt for prompt, _ in self._kept], masks, 100_000)
        if self._are_words_known:
            return float(self._detector.found_each(images, [word for _, word in self._kept]).mean())
        return float(np.mean([likeness(a, b) for a, b in zip(self._base_kept, map(_shrink, images), strict=True)]))

    def picture(self, masks: MaskSet) -> Image.Image:
        """See `Validator`; the categories in turn, then as many things to preserve."""
        in_turn = [prompt for row in zip(*self._erased.values(), strict=True) for prompt, _ in row]
        prompts = in_turn[:COLUMNS] + [prompt for prompt, _ in self._kept[-COLUMNS:]]
        return self._pictures.compare(prompts, masks)

    def _calibrate(self, detector: Detector) -> tuple[Detector, dict[str, Calibration]]:
        kept = self._pictures.draw([prompt for prompt, _ in self._kept], MaskSet({}), 100_000)
        self._base_kept = [_shrink(image) for image in kept]
        calibrations = {}
        for name, asked in self._erased.items():
            images = self._pictures.draw([prompt for prompt, _ in asked], MaskSet({}), self._shift(name))
            by_label: dict[str, list[Image.Image]] = {}
            for (_, label), image in zip(asked, images, strict=True):
                by_label.setdefault(label, []).append(image)
            chosen, calibrations[name] = calibrate(detector, by_label, kept)
            for label in by_label:
                detector.thresholds[detector.place_of(label)] = chosen.threshold_of(label)
        if self._are_words_known:
            detector = calibrate_among(detector, kept, [word for _, word in self._kept])
        return detector, calibrations

    def _shift(self, category: str) -> int:
        return 200_000 * (list(self._erased).index(category) + 1)


def open_for(config: TrainConfig, spec: str, device: str = "cpu") -> Detector:
    """Open the detector of a run for its concepts and its things to preserve.

    Raises:
        SafeFluxError: It cannot be opened, or has no label for a concept.
    """
    is_style = any(category.kind == "style" for category in config.categories.values())
    neutral = {word: (word,) for word in config.prompts.neutral}
    return open_labelled(spec, _words_of(config), neutral, is_style=is_style, device=device)


def _words_of(config: TrainConfig) -> Words:
    return {name: category.concepts for name, category in config.categories.items()}


def likeness(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Pearson's correlation of two pictures as vectors (D,), 0 to 1; two that are equal are alike, however flat."""
    if np.array_equal(a, b):
        return 1.0
    first, second = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return max(0.0, float(first @ second) / norm) if norm else 0.0


def _shrink(image: Image.Image) -> npt.NDArray[np.float32]:
    return np.asarray(image.convert("RGB").resize((_SMALL, _SMALL)), dtype=np.float32).ravel()
