"""Float formats as they lie in files, by the names that safetensors has for them. NumPy knows neither bf16 nor float8.

In each of them a zero is all bits zero. Formats that are packed (several numbers in a byte, blocks with a scale) are
not here: what is zero in them is another question.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


def _float8_e4m3() -> npt.NDArray[np.float32]:
    """The value of every byte: 4 bits of exponent with bias 7, 3 of mantissa, no infinities (arXiv 2209.05433)."""
    byte = np.arange(128)
    exponent, mantissa = byte >> 3, byte & 7
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_E4M3 = _float8_e4m3()

_READ: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "F64": ("<f8", lambda raw: raw),
    "F32": ("<f4", lambda raw: raw),
    "F16": ("<f2", lambda raw: raw),
    "BF16": ("<u2", lambda raw: (raw.astype("<u4") << 16).view("<f4")),
    "F8_E4M3": ("u1", lambda raw: _E4M3[raw]),
    "F8_E5M2": ("u1", lambda raw: (raw.astype("<u2") << 8).view("<f2")),
}
COARSENESS = {"F8_E5M2": "-e5m2", "F8_E4M3": "-e4m3"}
"""What the fingerprint of a model ends in that has weights of this format (`fingerprint.TOLERANCE`); coarsest first."""


def is_float(dtype: str) -> bool:
    """Whether this is a float format that is known here."""
    return dtype in _READ


def itemsize(dtype: str) -> int:
    """Bytes that one number takes."""
    return np.dtype(_READ[dtype][0]).itemsize


def decode(dtype: str, data: bytes) -> npt.NDArray[np.float64]:
    r"""Return the numbers that these bytes are.

    Example:
        >>> decode("BF16", b"\x80\x3f"), decode("F8_E4M3", b"\x38")
        (array([1.]), array([1.]))
    """
    kind, read = _READ[dtype]
    return read(np.frombuffer(data, dtype=kind)).astype(np.float64)
