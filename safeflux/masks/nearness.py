"""How near kept pictures stay to the base model's from the same noises, in figures.

`evaluation.fidelity` measures them, mask files carry them, and cards print them. Reading is lenient: what is no such
figure, or is not there, is left out, as in files that were made before these figures existed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from safeflux.rates import Mean

WORST = 10
"""How many things are listed by name: those with the least contrast."""
FIDELITY = "fidelity"
"""The key of these figures in an evaluation, beside its rates."""


@dataclass(frozen=True)
class Spread:
    """A mean with its interval, and how low the lowest twentieth begins."""

    mean: Mean
    percentile_5: float

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> "Spread":
        """Of at least two values (B,)."""
        return cls(Mean.of(values), float(np.percentile(values, 5)))

    def __str__(self) -> str:
        """`0.945 (0.940 to 0.950, n = 200), 5th percentile 0.730`."""
        return f"{self.mean}, 5th percentile {self.percentile_5:.3f}"

    def to_json(self) -> dict[str, Any]:
        """The mean's value, interval and count, and the percentile."""
        return {**self.mean.to_json(), "percentile_5": self.percentile_5}


@dataclass(frozen=True)
class Distance:
    """How far kept pictures are from the base model's in the features of a detector, as one less the cosine.

    Attributes:
        mean: Over pairs from the same noise; 0 for equal pictures.
        two_noises: Over pairs of the base model's, of one prompt from two noises; None where none were drawn.
    """

    mean: Mean
    two_noises: Mean | None

    def __str__(self) -> str:
        """`0.031 (0.028 to 0.034, n = 200); of two noises of the base model 0.210 (0.190 to 0.230, n = 200)`."""
        return f"{self.mean}" + (f"; of two noises of the base model {self.two_noises}" if self.two_noises else "")

    def to_json(self) -> dict[str, Any]:
        """The mean, and that of two noises."""
        return {**self.mean.to_json(), "two_noises": self.two_noises.to_json() if self.two_noises else None}


@dataclass(frozen=True)
class Faded:
    """One thing, and the contrast that its pictures keep on average, 0 to 1."""

    concept: str
    contrast: float
    n: int

    def __str__(self) -> str:
        """`bicycle 60 %`."""
        return f"{self.concept} {100 * self.contrast:.0f} %"


@dataclass(frozen=True)
class Nearness:
    """Pictures of things that masks should leave alone, beside the base model's from the same noises.

    Attributes:
        ssim: Structural similarity; None where it was not measured.
        contrast: Share of the contrast inside the thing that is left; None where no picture shows a thing.
        two_noises: Structural similarity of two pictures of the base model, of one prompt from two noises: what a
            picture that has nothing but the prompt in common comes to. None where it was not measured.
        worst: The things that kept least of their contrast, the worst first.
        distances: Detector -> the distance in its features, of detectors behind the first one that have any.
    """

    ssim: Spread | None
    contrast: Spread | None
    two_noises: Mean | None
    worst: tuple[Faded, ...]
    distances: Mapping[str, Distance] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def facts(self) -> dict[str, str]:
        """The figures that there are, in words."""
        known = {
            "structural similarity to the base model's pictures": self.ssim,
            "the same of two noises of the base model": self.two_noises,
            "contrast left inside the thing": self.contrast,
            "least of it": ", ".join(map(str, self.worst)),
            **{f"distance to them in the features of {name}": one for name, one in self.distances.items()},
        }
        return {name: str(value) for name, value in known.items() if value}

    @property
    def brief(self) -> str:
        """On one line: `SSIM 0.940 (two noises 0.797), contrast 94 %, 5th percentile 80 %, least bicycle 60 %`."""
        scale = f" (two noises {self.two_noises.value:.3f})" if self.two_noises else ""
        parts = [f"SSIM {self.ssim.mean.value:.3f}{scale}"] if self.ssim else []
        if self.contrast:
            low = f"5th percentile {100 * self.contrast.percentile_5:.0f} %"
            parts += [f"contrast {100 * self.contrast.mean.value:.0f} %", low]
        return ", ".join(parts + ([f"least {self.worst[0]}"] if self.worst else []))

    def to_json(self) -> dict[str, Any]:
        """Plain values; distances only where there are any."""
        parts = {"ssim": self.ssim, "contrast": self.contrast, "two_noises_ssim": self.two_noises}
        worst = [{"concept": one.concept, "contrast": one.contrast, "n": one.n} for one in self.worst]
        distances = {name: one.to_json() for name, one in self.distances.items()}
        plain = {name: part.to_json() if part else None for name, part in parts.items()} | {"worst": worst}
        return plain | ({"distances": distances} if distances else {})


def read_nearness(value: object) -> Nearness | None:
    """Nearness from what `to_json` made of it; None where the value holds none of its figures.

    Args:
        value: Any value of JSON.
    """
    if not isinstance(value, Mapping):
        return None
    worst, distances = value.get("worst"), value.get("distances")
    found = Nearness(
        ssim=_spread(value.get("ssim")),
        contrast=_spread(value.get("contrast")),
        two_noises=_mean(value.get("two_noises_ssim")),
        worst=tuple(filter(None, map(_faded, worst[:WORST] if isinstance(worst, list) else ()))),
        distances={
            name: Distance(mean, _mean(one.get("two_noises")))
            for name, one in (distances.items() if isinstance(distances, Mapping) else ())
            if (mean := _mean(one))
        },
    )
    return found if found.facts else None


def _mean(value: object) -> Mean | None:
    if not isinstance(value, Mapping):
        return None
    middle, bounds, n = _number(value.get("mean")), value.get("interval_95"), value.get("n")
    if middle is None or not isinstance(bounds, list) or len(bounds) != 2 or type(n) is not int or n < 1:
        return None
    low, high = map(_number, bounds)
    return None if low is None or high is None else Mean(middle, (low, high), n)


def _spread(value: object) -> Spread | None:
    mean, low = _mean(value), _number(value.get("percentile_5")) if isinstance(value, Mapping) else None
    return Spread(mean, low) if mean and low is not None else None


def _faded(value: object) -> Faded | None:
    if not isinstance(value, Mapping):
        return None
    concept, contrast, n = value.get("concept"), _number(value.get("contrast")), value.get("n")
    if not isinstance(concept, str) or contrast is None or type(n) is not int or n < 1:
        return None
    return Faded(concept, contrast, n)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and type(value) is not bool and isfinite(value) else None
