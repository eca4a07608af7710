"""The findings of a report on any model: the same pictures by each detector, and by their strictest verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from safeflux.evaluation.figures import Figures
from safeflux.evaluation.metrics import Paired
from safeflux.evaluation.worded.tally import Opinion

STRICTEST = "the strictest verdicts"


@dataclass(frozen=True, eq=False)
class Opinions:
    """What detectors count; headlines go by the first.

    Attributes:
        by_detector: Detector -> its opinion.
        strictest: The figures where of all verdicts on a picture the strictest counts; None of a single detector.
    """

    by_detector: Mapping[str, Opinion]
    strictest: Figures | None = None

    @property
    def first(self) -> Figures:
        """The figures that headlines go by."""
        return next(iter(self.by_detector.values())).figures

    @property
    def rows(self) -> dict[str, Paired]:
        """Every rate under a name for people."""
        return self._named("rows")

    @property
    def bars(self) -> dict[str, Paired]:
        """Every erased concept, and the groups that are kept."""
        return self._named("bars")

    @property
    def facts(self) -> dict[str, str]:
        """The other figures, in words; what each detector sees of the base model's own pictures first."""
        seen = {
            f"{detector}, {category}, on the base model": str(calibration)
            for detector, one in self.by_detector.items()
            for category, calibration in one.calibrations.items()
        }
        return seen | self._named("facts")

    @property
    def pictures(self) -> Mapping[str, Image.Image]:
        """`worst`: the kept things that faded most, before and after."""
        return self.first.pictures

    @property
    def warnings(self) -> list[str]:
        """A line for each category of which a detector sees little."""
        every = [
            calibration.warning(detector, category)
            for detector, one in self.by_detector.items()
            for category, calibration in one.calibrations.items()
        ]
        return [text for text in every if text]

    def to_json(self) -> dict[str, Any]:
        """The figures by the first detector, by the others, each with what it sees of the base model, and by all."""
        first, *others = [
            {
                "detector": detector,
                "on_the_base_model": {name: seen.to_json() for name, seen in one.calibrations.items()},
                **one.figures.to_json(),
            }
            for detector, one in self.by_detector.items()
        ]
        strictest = {"by_the_strictest_verdicts": self.strictest.to_json()} if self.strictest else {}
        return {**first, "second_opinions": others, **strictest}

    def _named(self, part: str) -> dict[str, Any]:
        """A part of all figures; beside those of the first detector, what differs from it says by whom it is."""
        others = {detector: one.figures for detector, one in list(self.by_detector.items())[1:]}
        others |= {STRICTEST: self.strictest} if self.strictest else {}
        merged: dict[str, Any] = dict(getattr(self.first, part))
        for who, figures in others.items():
            for name, value in getattr(figures, part).items():
                if merged.get(name) != value or isinstance(value, Paired):
                    merged[f"{name}, by {who}"] = value
        return merged
