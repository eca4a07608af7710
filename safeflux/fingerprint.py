"""Which base model these weights are: a short text that survives a cast and differs between fine-tunes.

A fingerprint has two parts. The structure is a digest of every tensor's name and shape: equal or not. The sketch is a
vector of 64 numbers, each a sum over all tensors of one sampled element with a random sign, in units of that tensor's
size. Rounding to bf16 or fp16 moves a sketch by less than 0.002 (root mean square); training moves it by the relative
size of the change; unrelated weights of one structure are 1.4 apart. So two fingerprints are compared by `same_base`,
never by equality of the texts.

Float8 rounds so coarsely (sketches move by 0.03 with e4m3 and by 0.06 with e5m2) that its fingerprints say so, and are
compared with more tolerance.

Limits: a change of the weights of less than about 0.4 % of their size (4 % and 8 % for float8) is not seen, nor is one
of a few elements. It tells honest models apart; it is no proof against someone who crafts weights.
"""

import base64
import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from safeflux.errors import ModelError
from safeflux.weights import check_in_memory, check_plain, named_weights

SKETCH_SIZE = 64
TOLERANCE = {"": 0.004, "-e4m3": 0.04, "-e5m2": 0.08}
"""By what stands at a fingerprint's end: the coarsest float type among the weights."""
_STEP = 2.0**-12  # far below the tolerance; 16 bits then hold sketches up to 8
_FORM = re.compile(r"sf1-([0-9a-f]{16})-([A-Za-z0-9_-]{171})(-e[45]m[23])?")


def fingerprint(transformer: torch.nn.Module) -> str:
    """Return the fingerprint of a transformer's weights as they are now.

    Compute it before masks are written: a masked model has other weights. Unmerged adapters do not count. It reads 64
    elements of each tensor, so it takes milliseconds whatever the model's size.

    Raises:
        ModelError: A sampled value is not finite, or a tensor is offloaded, quantised or sharded.
    """
    check_in_memory(transformer)
    return fingerprint_of(named_weights(transformer))


def fingerprint_of(weights: Mapping[str, torch.Tensor]) -> str:
    """Return the fingerprint of weights by name, such as those of a file.

    Raises:
        ModelError: As for `fingerprint`.
    """
    for name, tensor in weights.items():
        check_plain(name, tensor)
    return f"sf1-{_structure(weights)}-{_encode(_sketch(weights))}{_coarseness(weights.values())}"


def same_base(a: str, b: str) -> bool:
    """Say whether two fingerprints are of the same base weights, up to a cast between float types.

    A text that is no fingerprint matches nothing, not even itself.
    """
    parts = _FORM.fullmatch(a), _FORM.fullmatch(b)
    if parts[0] is None or parts[1] is None or parts[0][1] != parts[1][1]:
        return False
    return distance(a, b) <= max(TOLERANCE[part[3] or ""] for part in parts if part)


def distance(a: str, b: str) -> float:
    """Return the root mean square distance of two sketches: 0 for the same weights, 1.4 for unrelated ones.

    Raises:
        ValueError: One of the texts is no fingerprint.
    """
    return float(np.sqrt(np.mean((_decode(a) - _decode(b)) ** 2)))


def _coarseness(weights: Iterable[torch.Tensor]) -> str:
    dtypes = {str(weight.dtype) for weight in weights}
    return next((end for end in ("-e5m2", "-e4m3") if any("float8_" + end[1:] in dtype for dtype in dtypes)), "")


def _structure(weights: Mapping[str, torch.Tensor]) -> str:
    text = "\n".join(f"{name} {'x'.join(map(str, weights[name].shape))}" for name in sorted(weights))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def _sketch(weights: Mapping[str, torch.Tensor]) -> npt.NDArray[np.float64]:
    names = sorted(weights)
    samples = torch.stack([_sample(name, weights[name]) for name in names]).numpy()
    sizes = np.sqrt(np.mean(samples**2, axis=1, keepdims=True))
    if not np.isfinite(sizes).all():
        name = names[int(np.flatnonzero(~np.isfinite(sizes))[0])]
        raise ModelError(f"tensor {name!r} holds values that are not finite; load the model again")
    signs = np.stack([_chance(name, weights[name].numel())[1] for name in names])
    units = np.divide(samples, sizes, out=np.zeros_like(samples), where=sizes > 0)
    return (units * signs).sum(axis=0) / np.sqrt(len(weights))


def _sample(name: str, parameter: torch.Tensor) -> torch.Tensor:
    """64 elements of a tensor, float64."""
    values = parameter.detach()
    index = _chance(name, parameter.numel())[0].to(parameter.device)
    # torch cannot pick elements of float8, but can of bytes
    is_byte = values.element_size() == 1
    picked = values.view(torch.uint8).take(index).view(values.dtype) if is_byte else values.take(index)
    return picked.to(device="cpu", dtype=torch.float64)


@lru_cache(maxsize=8192)
def _chance(name: str, size: int) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
    """Which elements of a tensor are drawn, by its name and size alone, and as many random signs."""
    random = _mix(np.uint64(zlib.crc32(name.encode()) << 32) + np.arange(SKETCH_SIZE, dtype=np.uint64))
    places = (random >> np.uint64(1)) % np.uint64(size)
    return torch.from_numpy(places.astype(np.int64)), np.where(random & np.uint64(1), 1.0, -1.0)


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
