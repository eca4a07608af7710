"""Shares and means with their intervals: the one way in which every figure of the project is reported."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Z = 1.959963984540054
"""Two-sided 95 % of the normal distribution."""


@dataclass(frozen=True)
class Rate:
    """A share of n trials, with its 95 % Wilson interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share that hit; 0 for no trials."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95 % interval (Wilson 1927).

        Examples:
            >>> low, high = Rate(0, 200).interval
            >>> round(low, 4), round(high, 4)
            (0.0, 0.0188)
        """
        if not self.n:
            return 0.0, 1.0
        centre = (self.value + Z**2 / (2 * self.n)) / (1 + Z**2 / self.n)
        spread = Z / (1 + Z**2 / self.n) * (self.value * (1 - self.value) / self.n + Z**2 / (4 * self.n**2)) ** 0.5
        return max(0.0, centre - spread), min(1.0, centre + spread)

    def __add__(self, other: "Rate") -> "Rate":
        """The trials of both as one."""
        return Rate(self.hits + other.hits, self.n + other.n)

    def to_json(self) -> dict[str, Any]:
        """Value, interval and counts."""
        return {"rate": self.value, "interval_95": list(self.interval), "hits": self.hits, "n": self.n}

    def __str__(self) -> str:
        """`97.5 % (95.1 to 98.8, n = 320)`."""
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f}, n = {self.n})"

    @classmethod
    def of(cls, values: Iterable[bool | np.bool_]) -> "Rate":
        """Count the true ones."""
        hits = [bool(value) for value in values]
        return cls(sum(hits), len(hits))


@dataclass(frozen=True)
class Mean:
    """A mean with the normal 95 % interval of the mean."""

    value: float
    interval: tuple[float, float]
    n: int

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> "Mean":
        """The mean of at least two values (B,)."""
        middle = float(values.mean())
        spread = Z * float(values.std(ddof=1)) / len(values) ** 0.5
        return cls(middle, (middle - spread, middle + spread), len(values))

    def __str__(self) -> str:
        """`0.912 (0.905 to 0.919, n = 1000)`."""
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f} to {high:.3f}, n = {self.n})"

    def to_json(self) -> dict[str, Any]:
        """Value, interval and count."""
        return {"mean": self.value, "interval_95": list(self.interval), "n": self.n}


@dataclass(frozen=True)
class Difference:
    """How much higher the first of two shares is, with its 95 % interval.

    The trials of the two are independent. The interval is that of Newcombe (Statistics in Medicine 1998, method 10),
    made of the two Wilson intervals.

    Examples:
        >>> str(Difference(Rate(56, 70), Rate(48, 80)))  # the first example of the paper: .0524 to .3339
        '+20.0 (5.2 to 33.4)'
    """

    first: Rate
    second: Rate

    @property
    def value(self) -> float:
        """First less second, -1 to 1."""
        return self.first.value - self.second.value

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95 % interval."""
        (low, high), (other_low, other_high) = self.first.interval, self.second.interval
        below = ((self.first.value - low) ** 2 + (other_high - self.second.value) ** 2) ** 0.5
        above = ((high - self.first.value) ** 2 + (self.second.value - other_low) ** 2) ** 0.5
        return self.value - below, self.value + above

    def to_json(self) -> dict[str, Any]:
        """Value and interval."""
        return {"difference": self.value, "interval_95": list(self.interval)}

    def __str__(self) -> str:
        """`+20.0 (5.2 to 33.4)`, in percentage points."""
        low, high = self.interval
        return f"{100 * self.value:+.1f} ({100 * low:.1f} to {100 * high:.1f})"
