"""The findings of a report on any model: the same pictures by each detector."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from safeflux.evaluation.figures import Figures
from safeflux.evaluation.metrics import Paired
from safeflux.evaluation.worded.tally import Opinion


@dataclass(frozen=True, eq=False)
class Opinions:
    """Detector -> its opinion; headlines go by the first."""

    by_detector: Mapping[str, Opinion]

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
        """The figures by the first detector, then those by the others; each with what it sees of the base model."""
        first, *others = [
            {
                "detector": detector,
                "on_the_base_model": {name: seen.to_json() for name, seen in one.calibrations.items()},
                **one.figures.to_json(),
            }
            for detector, one in self.by_detector.items()
        ]
        return {**first, "second_opinions": others}

    def _named(self, part: str) -> dict[str, Any]:
        """A part of each detector's figures; from the second on, what differs from the first goes by its name."""
        merged: dict[str, Any] = dict(getattr(self.first, part))
        for detector, one in list(self.by_detector.items())[1:]:
            for name, value in getattr(one.figures, part).items():
                if merged.get(name) != value or isinstance(value, Paired):
                    merged[f"{name}, by {detector}"] = value
        return merged
