"""Fingerprints of base weights: a short string that survives a cast and differs between fine-tunes.

A fingerprint has two parts. The structure is a digest of every tensor's name and shape: equal or not. The sketch is a
vector of 64 numbers, each a sum over all tensors of one sampled element with a random sign, in units of that tensor's
size. Rounding to bf16 or fp16 moves a sketch by less than 0.002 (root mean square); training moves it by the relative
size of the change; unrelated weights of one structure are 1.4 apart. So two fingerprints are compared with
`same_base`, never as strings.

Float8 and the quantised types of GGUF round so coarsely (sketches move by 0.03 with e4m3, by 0.06 with e5m2, by up to
0.1 with 4 bits) that their fingerprints say so, and are compared with more tolerance.

Limits: a change of the weights by less than about 0.4 % of their size is not detected (4 % and 8 % for float8, 1 % for
8 bits of GGUF, 14 % for 4 bits), nor is a change of a few elements. Fingerprints tell ordinary models apart; they do
not protect against crafted weights.
"""

import base64
import hashlib
import math
import re
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from safeflux.errors import ModelError

SKETCH_SIZE = 64
TOLERANCE = {
    "": 0.004,
    "-q8": 0.01,
    "-q6": 0.025,
    "-e4m3": 0.04,
    "-q5": 0.06,
    "-e5m2": 0.08,
    "-q4": 0.14,
    "-q3": 0.2,
    "-q2": 0.35,
    "-q1": 0.55,
}
"""Tolerance by the suffix of a fingerprint, the coarsest type among the weights; -q4 is any 4-bit type of GGUF."""
_STEP = 2.0**-12  # far below the tolerance; 16 bits then hold sketches up to 8
_FORM = re.compile(r"sf1-([0-9a-f]{16})-([A-Za-z0-9_-]{171})(-e[45]m[23]|-q[1-68])?")


class Weights(Protocol):
    """All parameters of a transformer, wherever they are: in memory or in files. Names are those of diffusers."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each parameter."""

    @property
    def coarsest(self) -> str:
        """The suffix of the fingerprint, a key of `TOLERANCE`."""

    def take(self, name: str, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return elements of one parameter, by their row-major indices."""


def fingerprint_of(weights: Weights) -> str:
    """Return the fingerprint of weights as they are now; it reads 64 elements of each tensor.

    Compute it before masks are written: a masked model has other weights.

    Raises:
        ModelError: A sampled value is not finite, or a tensor is empty.
    """
    return f"sf1-{_structure(weights.shapes)}-{_encode(_sketch(weights))}{weights.coarsest}"


def same_base(a: str, b: str) -> bool:
    """Return whether two fingerprints belong to the same base weights, up to a cast between float types.

    A string that is not a fingerprint matches nothing, not even itself.
    """
    parts = _FORM.fullmatch(a), _FORM.fullmatch(b)
    if parts[0] is None or parts[1] is None or parts[0][1] != parts[1][1]:
        return False
    return distance(a, b) <= max(TOLERANCE[part[3] or ""] for part in parts if part)


def distance(a: str, b: str) -> float:
    """Return the root mean square distance of two sketches: 0 for the same weights, 1.4 for unrelated ones.

    Raises:
        ValueError: One of the strings is not a fingerprint.
    """
    return float(np.sqrt(np.mean((_decode(a) - _decode(b)) ** 2)))


def _structure(shapes: Mapping[str, tuple[int, ...]]) -> str:
    text = "\n".join(f"{name} {'x'.join(map(str, shapes[name]))}" for name in sorted(shapes))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sketch(weights: Weights) -> npt.NDArray[np.float64]:
    sizes = {name: math.prod(shape) for name, shape in sorted(weights.shapes.items())}
    if empty := [name for name, size in sizes.items() if not size]:
        raise ModelError(f"tensor {empty[0]!r} is empty; copy the model again")
    chances = {name: sampled(name, size) for name, size in sizes.items()}
    samples = np.stack([weights.take(name, places) for name, (places, _) in chances.items()])
    with np.errstate(all="ignore"):  # values that are not finite are reported below
        units = np.sqrt(np.mean(samples**2, axis=1, keepdims=True))
    if not np.isfinite(units).all():
        name = list(chances)[int(np.flatnonzero(~np.isfinite(units))[0])]
        raise ModelError(f"tensor {name!r} holds values that are not finite; load the model again")
    signs = np.stack([signs for _, signs in chances.values()])
    parts = np.divide(samples, units, out=np.zeros_like(samples), where=units > 0)
    return (parts * signs).sum(axis=0) / np.sqrt(len(chances))


@lru_cache(maxsize=8192)
def sampled(name: str, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The sampled elements of a tensor and their random signs; they depend only on its name and size."""
    random = _mix(np.uint64(zlib.crc32(name.encode()) << 32) + np.arange(SKETCH_SIZE, dtype=np.uint64))
    places = (random >> np.uint64(1)) % np.uint64(size)
    return places.astype(np.int64), np.where(random & np.uint64(1), 1.0, -1.0)


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Turn counters into random bits (the splitmix64 generator): the same on every platform and version."""
    z = (state + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _encode(sketch: npt.NDArray[np.float64]) -> str:
    steps = np.clip(np.rint(sketch / _STEP), -(2**15), 2**15 - 1).astype("<i2")
    return base64.urlsafe_b64encode(steps.tobytes()).decode().rstrip("=")


def _decode(text: str) -> npt.NDArray[np.float64]:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a fingerprint such as 'sf1-0123456789abcdef-...', got {text[:40]!r}")
    return np.frombuffer(base64.urlsafe_b64decode(match[2] + "="), dtype="<i2") * _STEP
