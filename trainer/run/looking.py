"""Validation by any detector: what a run's masks are to erase, looked for in pictures of any model.

The detector's thresholds are chosen on the base model's own pictures, drawn before the first round. What it cannot see
there cannot be shown to be gone, so what it finds and misses there is part of every report.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.prompts import PromptSource
from safeflux.trainer.processes import Processes
from safeflux.trainer.run.pictures import Pictures
from safeflux.trainer.run.validation import AGAIN, COLUMNS, SECOND_LOOK, VALIDATION_SEED, Validator, larger_share

from safeflux.cached import cached_property
from safeflux.detectors.base import Detector, Scores
from safeflux.detectors.calibration import Calibration, calibrate_among, calibrate_by_scores, trace_levels
from safeflux.detectors.labels import Words, labels_of
from safeflux.detectors.labels import open_for as open_labelled
from safeflux.evaluation.fidelity import beside_base
from safeflux.evaluation.metrics import Paired
from safeflux.evaluation.worded.bench import SMALL, small
from safeflux.masks.mask_set import MaskSet

_SMALL = 32  # pixels a side, where pictures are compared as a whole


@dataclass(frozen=True)
class _Asked:
    """A prompt of a category, the label that its picture is looked at for, and whether it asks for nothing else."""

    prompt: str
    label: str
    is_alone: bool


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
        rng, other = (np.random.default_rng((config.seed, VALIDATION_SEED, *more)) for more in ((), (1,)))
        pairs, again = ({name: source.erase(name, one, count) for name in config.categories} for one in (rng, other))
        self._looks = tuple(
            {
                name: [_Asked(pair.prompt, labels[name, pair.concept or ""], pair.is_alone) for pair in of_one]
                for name, of_one in asked.items()
            }
            for asked in (pairs, again)
        )
        self._erased = self._looks[0]
        self._anchors = {name: [pair.anchor for pair in of_one] for name, of_one in pairs.items()}
        self._alone = source.alone(rng, -(-count // 2))
        self._kept = [*self._alone, *source.beside(rng, -(-count // 2))]
        self._words = {
            name: [w for words in one.concepts.values() for w in words] for name, one in config.categories.items()
        }
        self._are_words_known = all(word in detector.concepts for _, word in self._kept)
        self._base: dict[str, Scores] = {}
        self._detector, self.calibrations = self._calibrate(detector)
        self._looked: dict[str, Scores] = {}
        self._looked_kept: list[Image.Image] = []

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

    def found(self, category: str, masks: MaskSet, look: int = 0) -> float:
        """See `Validator`."""
        asked = self._looks[look][category]
        scores, columns = self._detector(self._draw(category, masks, look)), self._columns(asked)
        if look == 0:
            self._looked[category] = scores
        is_there = scores[np.arange(len(columns)), columns] > self._detector.thresholds[columns]
        return larger_share(is_there, [one.is_alone for one in asked])

    def right(self, erased: Collection[str], masks: MaskSet) -> float:
        """See `Validator`. By a detector with labels of its own: how alike the pictures are to the base model's."""
        images = self._pictures.draw([prompt for prompt, _ in self._kept], masks, 100_000)
        self._looked_kept = [small(image, SMALL) for image in images[: len(self._alone)]]
        if self._are_words_known:
            return float(self._detector.found_each(images, [word for _, word in self._kept]).mean())
        return float(np.mean([likeness(a, b) for a, b in zip(self._base_kept, map(_shrink, images), strict=True)]))

    def beside_base(self, category: str) -> dict[str, Any]:
        """See `Validator`; of the neutral things alone whose prompts have no word of the category, as of a style."""
        places = [k for k in self._without(category) if k < len(self._alone)]
        if not places:
            return {}
        levels = trace_levels(self._base_kept_scores[places], self._detector.thresholds)
        rows, columns = np.arange(len(self._erased[category])), self._columns(self._erased[category])
        base, masked = (one[category][rows, columns] > levels[columns] for one in (self._base, self._looked))
        things = [self._alone[k][1] for k in places]
        sides = self._base_alone, self._looked_kept, self._again
        before, after, again = ([images[k] for k in places] for images in sides)
        return beside_base(things, before, after, again, Paired.of(base, masked))

    @cached_property
    def _again(self) -> list[Image.Image]:
        """The base model's pictures of the things to preserve alone, from other noises."""
        images = self._pictures.draw([prompt for prompt, _ in self._alone], MaskSet({}), AGAIN)
        return [small(image, SMALL) for image in images]

    def picture(self, masks: MaskSet) -> Image.Image:
        """See `Validator`; the categories in turn, then as many things to preserve."""
        in_turn = [one.prompt for row in zip(*self._erased.values(), strict=True) for one in row]
        prompts = in_turn[:COLUMNS] + [prompt for prompt, _ in self._kept[-COLUMNS:]]
        return self._pictures.compare(prompts, masks)

    def _calibrate(self, detector: Detector) -> tuple[Detector, dict[str, Calibration]]:
        kept = self._pictures.draw([prompt for prompt, _ in self._kept], MaskSet({}), 100_000)
        self._base_kept = [_shrink(image) for image in kept]
        self._base_alone = [small(image, SMALL) for image in kept[: len(self._alone)]]
        self._base_kept_scores, calibrations = detector(kept), {}
        for name, asked in self._erased.items():
            scores, labels = detector(self._draw(name, MaskSet({}))), np.array([one.label for one in asked])
            self._base[name] = scores
            by_label = {label: scores[labels == label] for label in dict.fromkeys(labels.tolist())}
            chosen, calibrations[name] = calibrate_by_scores(detector, by_label, self._quiet(name, detector))
            for label in by_label:
                detector.thresholds[detector.place_of(label)] = chosen.threshold_of(label)
        if self._are_words_known:
            detector = calibrate_among(detector, kept, [word for _, word in self._kept])
        return detector, calibrations

    def _quiet(self, category: str, detector: Detector) -> Scores:
        """The scores of the base model's pictures that do not ask for a category.

        Where every thing to preserve is shown beside it, as in its style, the anchors are drawn for this.
        """
        if places := self._without(category):
            return self._base_kept_scores[places]
        return detector(self._pictures.draw(self._anchors[category], MaskSet({}), 100_000))

    def _without(self, category: str) -> list[int]:
        """Places of the prompts to preserve without a word of a category, which may stand beside the thing."""
        words = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in self._words[category]))
        return [k for k, (prompt, _) in enumerate(self._kept) if not words.search(prompt)]

    def _draw(self, category: str, masks: MaskSet, look: int = 0) -> list[Image.Image]:
        """The pictures that ask for a category."""
        shift = 200_000 * (list(self._erased).index(category) + 1) + SECOND_LOOK * look
        return self._pictures.draw([one.prompt for one in self._looks[look][category]], masks, shift)

    def _columns(self, asked: Sequence[_Asked]) -> list[int]:
        """What each of some pictures is looked at for."""
        return [self._detector.place_of(one.label) for one in asked]


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


class CommonValidator:
    """The validator of all processes of a run: each draws the pictures, and the first one's figures count in all.

    Where the weights are split, drawing takes all processes, and none may take another way by figures of its own.
    """

    def __init__(self, own: Validator, processes: Processes) -> None:
        self._own, self._processes = own, processes
        self.about, self.notes = own.about, own.notes

    def found(self, category: str, masks: MaskSet, look: int = 0) -> float:
        """See `Validator`."""
        return float(self._processes.from_first(self._own.found(category, masks, look)))

    def right(self, erased: Collection[str], masks: MaskSet) -> float:
        """See `Validator`."""
        return float(self._processes.from_first(self._own.right(erased, masks)))

    def beside_base(self, category: str) -> dict[str, Any]:
        """See `Validator`."""
        return self._own.beside_base(category)

    def picture(self, masks: MaskSet) -> Image.Image:
        """See `Validator`."""
        return self._own.picture(masks)
