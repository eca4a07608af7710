"""The figures' arithmetic: paired rates, harmonic means, structural similarity, Frechet distance. Runs no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeflux.rates import Rate, Z

_DRAWS = 20_000

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Paired:
    """The same prompts and noises drawn by two models: how often something holds in the pictures of each.

    Attributes:
        base: The rate of the base model.
        masked: The rate of the masked model.
        lost: Pictures in which it held before and does not now.
        gained: Pictures in which it holds now and did not before.
    """

    base: Rate
    masked: Rate
    lost: int
    gained: int

    @classmethod
    def of(cls, base: Bools, masked: Bools) -> "Paired":
        """Count two bool vectors (B,) whose entries belong together."""
        lost, gained = int((base & ~masked).sum()), int((masked & ~base).sum())
        return cls(Rate.of(base), Rate.of(masked), lost, gained)

    def __add__(self, other: "Paired") -> "Paired":
        """Both groups of pictures as one."""
        base, masked = self.base + other.base, self.masked + other.masked
        return Paired(base, masked, self.lost + other.lost, self.gained + other.gained)

    @property
    def change(self) -> tuple[float, float, float]:
        """Masked rate less base rate, and its 95 % interval for matched pairs (Agresti and Min 2005: half a pair more).

        Examples:
            >>> pair = Paired(Rate(10, 10), Rate(10, 10), 0, 0)
            >>> [round(x, 2) for x in pair.change]
            [0.0, -0.16, 0.16]
        """
        n, lost, gained = self.base.n + 2, self.lost + 0.5, self.gained + 0.5
        middle = (gained - lost) / n
        spread = Z * (max(0.0, lost + gained - n * middle**2)) ** 0.5 / n
        raw = self.masked.value - self.base.value
        return raw, max(-1.0, middle - spread), min(1.0, middle + spread)

    def to_json(self) -> dict[str, Any]:
        """Both rates, the change and its interval, and the counts of pictures that changed."""
        change, low, high = self.change
        return {
            "base": self.base.to_json(),
            "masked": self.masked.to_json(),
            "change": change,
            "change_interval_95": [low, high],
            "lost": self.lost,
            "gained": self.gained,
        }


@dataclass(frozen=True)
class Harmonic:
    """A harmonic mean of rates, with its 95 % interval."""

    value: float
    interval: tuple[float, float]
    terms: tuple[str, ...]
    """The rates that it is the mean of."""

    def __str__(self) -> str:
        """`95.1 % (93.0 to 96.4)`."""
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"

    def to_json(self) -> dict[str, Any]:
        """Value, interval and the names of the terms."""
        return {"value": self.value, "interval_95": list(self.interval), "terms": list(self.terms)}


def harmonic(erased: Rate, kept: Rate, synonyms: Rate | None) -> Harmonic:
    """MACE's one figure for erasing and keeping (arXiv 2403.06135, section 4.1): H_o, or H_c without synonyms.

    The interval is the middle 95 % of the mean under independent Jeffreys posteriors Beta(hits + 1/2, misses + 1/2) of
    the rates, from fixed draws: the same counts give the same interval.

    Args:
        erased: How often an erased concept is still found, Acc_e; counts as 1 - Acc_e.
        kept: Accuracy on everything else, Acc_s.
        synonyms: How often it is still found by other words, Acc_g; counts as 1 - Acc_g. None leaves the term out.

    Examples:
        >>> round(harmonic(Rate(0, 10), Rate(5, 10), None).value, 4)
        0.6667
    """
    parts = {"1 - erased found": (erased.n - erased.hits, erased.n), "kept right": (kept.hits, kept.n)}
    if synonyms:
        parts["1 - erased found by synonyms"] = (synonyms.n - synonyms.hits, synonyms.n)
    good = np.array(list(parts.values()), dtype=float)
    draws = np.random.default_rng(0).beta(good[:, 0] + 0.5, good[:, 1] - good[:, 0] + 0.5, size=(_DRAWS, len(parts)))
    low, high = np.quantile(_harmonic_mean(draws), (0.025, 0.975))
    value = float(_harmonic_mean(good[None, :, 0] / good[None, :, 1])[0])
    return Harmonic(value, (float(low), float(high)), tuple(parts))


def _harmonic_mean(values: Floats) -> Floats:
    """Over the last axis; 0 where a value is 0."""
    with np.errstate(divide="ignore"):
        mean: Floats = values.shape[-1] / (1 / values).sum(-1)
    return mean


def similarities(base: Sequence[Image.Image], masked: Sequence[Image.Image]) -> Floats:
    """Structural similarity of each pair of pictures, 1 for equal ones; float64 (B,).

    As Wang et al. (2004) define it: Gaussian window of 1.5 pixels, population covariances, the mean over RGB. Needs
    scikit-image.
    """
    from skimage.metrics import structural_similarity

    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return np.array(
        [
            structural_similarity(np.asarray(a), np.asarray(b), channel_axis=2, data_range=255, **settings)
            for a, b in zip(base, masked, strict=True)
        ]
    )


def cosine_distances(a: Floats, b: Floats) -> Floats:
    """One less the cosine of each pair of rows (B, D), 0 for the same direction; float64 (B,).

    Examples:
        >>> cosine_distances(np.array([[1.0, 0], [1, 0]]), np.array([[2.0, 0], [0, 3]])).tolist()
        [0.0, 1.0]
    """
    first, second = (rows.astype(np.float64) for rows in (a, b))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines: Floats = (first * second).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return 1 - cosines


def frechet_distance(a: Floats, b: Floats) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians with the means and covariances of two samples.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), as FID takes it of Inception's features (Heusel et al.,
    arXiv 1706.08500). Only symmetric matrices have a root taken, by eigenvalues, so that nothing turns complex.

    Args:
        a: One sample of features (N, D), N > 1.
        b: The other, (M, D).
    """
    first, second = (np.asarray(x, dtype=np.float64) for x in (a, b))
    shift = first.mean(0) - second.mean(0)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second))
    root = _root(cov_a)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    return max(0.0, float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def _root(covariance: Floats) -> Floats:
    """The symmetric square root of a positive semi-definite matrix (D, D); rounding below 0 counts as 0."""
    values, vectors = np.linalg.eigh(covariance)
    root: Floats = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
