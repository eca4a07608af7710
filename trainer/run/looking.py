"""Validation by any detector: what a run's masks are to erase, looked for in pictures of any model.

The detector's thresholds are chosen on the base model's own pictures, drawn before the first round. What it cannot see
there cannot be shown to be gone, so what it finds and misses there is part of every report.
"""

import difflib
import re
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.options import call_of
from safeflux.trainer.asked.prompts import PromptSource
from safeflux.trainer.run.validation import COLUMNS, VALIDATION_SEED, grid

from safeflux.detectors.base import Detector, Wanted
from safeflux.detectors.calibration import Calibration, calibrate, calibrate_among
from safeflux.detectors.specs import open_detector
from safeflux.errors import ConfigError
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_
from safeflux.reference.measure import draw

LEAST_SEEN = 0.5
"""A category of which a detector sees less in the base model's pictures is warned of."""
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
        self._pipe, self._call, self._batch = pipe, call_of(config), config.batch
        labels = labels_of(detector, config)
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
        lines = [f"{self._detector.name}, {name}: {one}" for name, one in self.calibrations.items()]
        return lines + [
            f"warning: {self._detector.name} sees {name} in only {one.overall} of the base model's own pictures that "
            "ask for it. That it is not found under a mask says little; take another detector, or other words."
            for name, one in self.calibrations.items()
            if one.overall.value < LEAST_SEEN
        ]

    def found(self, category: str, masks: MaskSet) -> float:
        """See `Validator`."""
        asked = self._erased[category]
        images = self._draw([prompt for prompt, _ in asked], masks, self._shift(category))
        return float(_each(self._detector, images, [label for _, label in asked]).mean())

    def right(self, erased: Collection[str], masks: MaskSet) -> float:
        """See `Validator`. By a detector with labels of its own: how alike the pictures are to the base model's."""
        images = self._draw([prompt for prompt, _ in self._kept], masks, 100_000)
        if self._are_words_known:
            return float(_each(self._detector, images, [word for _, word in self._kept]).mean())
        return float(np.mean([likeness(a, b) for a, b in zip(self._base_kept, map(_shrink, images), strict=True)]))

    def picture(self, masks: MaskSet) -> Image.Image:
        """See `Validator`; the categories in turn, then as many things to preserve."""
        in_turn = [prompt for row in zip(*self._erased.values(), strict=True) for prompt, _ in row]
        prompts = in_turn[:COLUMNS] + [prompt for prompt, _ in self._kept[-COLUMNS:]]
        return grid([self._draw(prompts, state, 300_000) for state in (MaskSet({}), masks)])

    def _calibrate(self, detector: Detector) -> tuple[Detector, dict[str, Calibration]]:
        kept = self._draw([prompt for prompt, _ in self._kept], MaskSet({}), 100_000)
        self._base_kept = [_shrink(image) for image in kept]
        calibrations = {}
        for name, asked in self._erased.items():
            images = self._draw([prompt for prompt, _ in asked], MaskSet({}), self._shift(name))
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

    def _draw(self, prompts: Sequence[str], masks: MaskSet, shift: int) -> list[Image.Image]:
        with apply_masks_(self._pipe.transformer, masks) if masks else nullcontext():
            return draw(self._pipe, prompts, VALIDATION_SEED + shift, batch=self._batch, settings=self._call)


def open_for(config: TrainConfig, spec: str, device: str = "cpu") -> Detector:
    """Open the detector of a run for its concepts and its things to preserve.

    Raises:
        SafeFluxError: It cannot be opened, or has no label for a concept.
    """
    erased = {name: words for category in config.categories.values() for name, words in category.concepts.items()}
    taken = {word for words in erased.values() for word in words}
    neutral = {word: (word,) for word in config.prompts.neutral if word not in taken}
    is_style = any(category.kind == "style" for category in config.categories.values())
    templates = ("{}", "a picture of {}") if is_style else ("a photo of {}", "a drawing of {}", "{}")
    detector = open_detector(spec, Wanted({**erased, **neutral}, templates=templates, device=device))
    labels_of(detector, config)
    return detector


def labels_of(detector: Detector, config: TrainConfig) -> dict[tuple[str, str], str]:
    """Category and concept -> the detector's label for it: the concept, one of its words, or the category.

    Raises:
        ConfigError: It has none.
    """
    known = {part: label for label in reversed(detector.concepts) for part in (*_parts(label), label)}
    labels = {}
    for category, asked in config.categories.items():
        for concept, words in asked.concepts.items():
            names = (concept, _plain(concept), *map(_plain, words), category, _plain(category))
            label = next((known[name] for name in names if name in known), None)
            if label is None:
                near = difflib.get_close_matches(_plain(concept), known, n=3)
                raise ConfigError(
                    f"category {category!r}, concept {concept!r}: the detector {detector.name} has no label of that "
                    f"name, nor one of its words or of the category; nearest: {', '.join(near) or 'none'}"
                )
            labels[category, concept] = label
    return labels


def likeness(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Pearson's correlation of two pictures as vectors (D,), 0 to 1; two that are equal are alike, however flat."""
    if np.array_equal(a, b):
        return 1.0
    first, second = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return max(0.0, float(first @ second) / norm) if norm else 0.0


def _each(detector: Detector, images: Sequence[Image.Image], names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """For picture b, whether `names[b]` is found in it."""
    columns = [detector.place_of(name) for name in names]
    return np.asarray(detector(images)[np.arange(len(columns)), columns] > detector.thresholds[columns])


def _shrink(image: Image.Image) -> npt.NDArray[np.float32]:
    return np.asarray(image.convert("RGB").resize((_SMALL, _SMALL)), dtype=np.float32).ravel()


def _parts(label: str) -> list[str]:
    """The names that a label is made of: `revolver, six-gun` is two."""
    return [_plain(part) for part in label.split(",")]


def _plain(words: str) -> str:
    """Without article, in lower case, with spaces."""
    return re.sub(r"^(an?|the) ", "", words.lower().replace("-", " ").replace("_", " ").strip())
