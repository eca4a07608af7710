"""Thresholds from the base model's own pictures, and what a detector finds and misses in them. Draws nothing."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from safeflux.detectors.base import Detector, Scores
from safeflux.errors import ConfigError
from safeflux.rates import Rate

FALSE_ALARMS = 0.02
"""Share of neutral pictures in which a concept may be found."""
LEAST_SEEN = 0.5
"""A category of which a detector sees less in the base model's pictures is warned of."""

_D = TypeVar("_D", bound=Detector)


@dataclass(frozen=True)
class Calibration:
    """How well a detector sees its concepts in the base model's pictures.

    Attributes:
        thresholds: Concept -> the score above which it counts as found.
        found: Concept -> in how many of the pictures that ask for it.
        false_alarms: Concept -> in how many neutral pictures.
    """

    thresholds: Mapping[str, float]
    found: Mapping[str, Rate]
    false_alarms: Mapping[str, Rate]

    @property
    def weakest(self) -> str:
        """The concept that it finds least."""
        return min(self.found, key=lambda name: self.found[name].value)

    @property
    def overall(self) -> Rate:
        """In how many of all pictures that ask for a concept it is found."""
        return sum(self.found.values(), Rate(0, 0))

    def about(self, names: Iterable[str]) -> "Calibration":
        """The part that speaks of some concepts."""
        chosen = dict.fromkeys(names)
        return Calibration(
            {name: self.thresholds[name] for name in chosen},
            {name: self.found[name] for name in chosen},
            {name: self.false_alarms[name] for name in chosen},
        )

    def warning(self, detector: str, category: str) -> str | None:
        """A warning where so little of a category is seen that a mask's figures say little; else None."""
        if self.overall.value >= LEAST_SEEN:
            return None
        return (
            f"warning: {detector} sees {category} in only {self.overall} of the base model's own pictures that ask for "
            "it. That it is not found under a mask says little; take another detector, or other words."
        )

    def __str__(self) -> str:
        """One line for people."""
        alarms = sum(self.false_alarms.values(), Rate(0, 0))
        return (
            f"finds {self.overall} where it is asked for, least {self.weakest} ({self.found[self.weakest]}); "
            f"false alarms {alarms}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, by concept."""
        return {
            name: {
                "threshold": threshold,
                "found": self.found[name].to_json(),
                "false_alarms": self.false_alarms[name].to_json(),
            }
            for name, threshold in self.thresholds.items()
        }


def calibrate(
    detector: _D,
    asked: Mapping[str, Sequence[Image.Image]],
    neutral: Sequence[Image.Image],
    *,
    most: float = FALSE_ALARMS,
) -> tuple[_D, Calibration]:
    """Choose the thresholds of some concepts, and count what is found by them.

    Of the thresholds under which at most `most` of the neutral pictures are false alarms, the one that parts asked-for
    and neutral pictures best (Youden's index: hits less false alarms), in the middle of its gap. A detector that is
    calibrated already keeps its thresholds; only the counts are taken.

    Args:
        detector: Left as it is; the result is a copy with other thresholds, and counts as calibrated.
        asked: Concept -> the base model's pictures that ask for it.
        neutral: The base model's pictures of other things.
        most: Share of these that may be false alarms.

    Raises:
        ConfigError: It knows no concept of that name; a concept, or the neutral side, has no pictures.
    """
    if not asked or not neutral or not all(asked.values()):
        raise ConfigError("to calibrate a detector, expected pictures of every concept and neutral ones, got none")
    scores = {name: detector(images) for name, images in asked.items()}
    return calibrate_by_scores(detector, scores, detector(neutral), most=most)


def calibrate_by_scores(
    detector: _D, asked: Mapping[str, Scores], neutral: Scores, *, most: float = FALSE_ALARMS
) -> tuple[_D, Calibration]:
    """See `calibrate`, for pictures that were looked at already.

    Args:
        detector: Left as it is.
        asked: Concept -> the scores of the pictures that ask for it, (B, concepts) of the detector.
        neutral: The scores of the others, (N, concepts).
        most: Share of these that may be false alarms.

    Raises:
        ConfigError: It knows no concept of that name.
    """
    thresholds, found, alarms = detector.thresholds.copy(), {}, {}
    columns = {name: detector.place_of(name) for name in asked}
    for name, column in columns.items():
        scores, quiet = asked[name][:, column], neutral[:, column]
        if not detector.is_calibrated:
            thresholds[column] = choose_threshold(scores, quiet, most)
        found[name], alarms[name] = (Rate.of(part > thresholds[column]) for part in (scores, quiet))
    chosen = copy(detector)
    chosen.thresholds, chosen.is_calibrated = thresholds, True
    return chosen, Calibration({name: float(thresholds[k]) for name, k in columns.items()}, found, alarms)


def trace_levels(neutral: Scores, thresholds: Scores, *, most: float = FALSE_ALARMS) -> Scores:
    """The score of each concept above which a picture that asks for it has a trace of it, whether it is found or not.

    A trace is more than the detector sees where there is nothing of the concept: no more than `most` of the neutral
    pictures score above the level. What counts as found is a trace too.

    Args:
        neutral: Scores of the base model's pictures of other things, (N, concepts).
        thresholds: The scores above which the concepts count as found, (concepts,).
        most: Share of neutral pictures that may be above.

    Examples:
        >>> quiet = np.arange(100, dtype=np.float32)[:, None] * np.float32([1, 1])
        >>> trace_levels(quiet, np.float32([200, 50])).tolist()
        [98.0, 50.0]
    """
    return np.minimum(thresholds, np.quantile(neutral, 1 - most, axis=0, method="higher")).astype(np.float32)


def calibrate_among(
    detector: _D,
    images: Sequence[Image.Image],
    names: Sequence[str],
    beside: Sequence[str | None] = (),
    *,
    most: float = FALSE_ALARMS,
) -> _D:
    """Choose the threshold of each thing that the pictures show against the pictures of the others.

    Args:
        detector: Left as it is; one that is calibrated already is returned.
        images: The base model's pictures, B.
        names: What each of them asks for, B concepts of the detector.
        beside: What else each of them shows, which it does not count against; nothing without.
        most: Share of the others' pictures that may be false alarms.
    """
    if detector.is_calibrated:
        return detector
    scores, chosen, asked = detector(images), copy(detector), np.array(names)
    too = np.array(beside or [None] * len(names))
    chosen.thresholds = detector.thresholds.copy()
    for name in dict.fromkeys(names):
        column, is_asked, is_other = detector.place_of(name), asked == name, (asked != name) & (too != name)
        if is_other.any():
            mine, others = scores[is_asked, column], scores[is_other, column]
            chosen.thresholds[column] = choose_threshold(mine, others, most)
    return chosen


def choose_threshold(asked: Scores, neutral: Scores, most: float) -> float:
    """See `calibrate`; of the scores of one concept, (A,) and (N,).

    Examples:
        >>> asked, neutral = np.float32([7, 8, 9]), np.float32([1, 2, 3])
        >>> choose_threshold(asked, neutral, 0.02)
        5.0
    """
    values = np.unique(np.concatenate([asked, neutral])).astype(np.float64)
    middles = (values[1:] + values[:-1]) / 2
    candidates = np.concatenate([middles, values[-1:]])  # above the last, nothing is found
    hits = (asked[None] > candidates[:, None]).mean(axis=1)
    alarms = (neutral[None] > candidates[:, None]).mean(axis=1)
    index = np.where(alarms <= most, hits - alarms, -np.inf)
    gaps = np.concatenate([np.diff(values), [0.0]])
    return float(candidates[np.lexsort((gaps, index))[-1]])
