"""Float formats as they lie in files, by the names that safetensors has for them. NumPy knows neither bf16 nor float8.

In each of them a zero is all bits zero. Formats that are packed (several numbers in a byte, blocks with a scale) can be
described here, but are known elsewhere (`gguf_file`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from safeflux.checkpoints.zero_codes import ALONE, Layer, Places, Read, find_layers

Array = npt.NDArray[np.generic]
Cells = npt.NDArray[np.unsignedinteger[Any]]
"""Numbers as they lie, as the unsigned integers that they are worked on."""


@dataclass(frozen=True)
class Format:
    """How numbers lie in bytes: in blocks, of which each row of a matrix is a whole number; plain floats are alone.

    A block of zero bytes is a block of zeros.
    """

    nbytes: int
    """Bytes that a block takes."""
    cell: int
    """Bytes of the unsigned integers as which blocks are worked on."""
    read: Read
    block: int = 1
    """Numbers in a block."""
    coarseness: str = ""
    """What the fingerprint of a model with such weights ends in, a key of `fingerprint.TOLERANCE`."""

    def decode(self, data: bytes) -> npt.NDArray[np.float64]:
        r"""Return the numbers of some blocks.

        Example:
            >>> FORMATS["BF16"].decode(b"\x80\x3f"), FORMATS["F8_E4M3"].decode(b"\x38")
            (array([1.]), array([1.]))
        """
        with np.errstate(all="ignore"):  # a damaged scale may be no number
            return self.read(np.frombuffer(data, dtype=np.uint8)).astype(np.float64)

    @cached_property
    def layers(self) -> Sequence[Layer]:
        """How a number becomes zero, and nothing else with it; none if no number can alone."""
        return ALONE if self.block == 1 else find_layers(self.read, self.block, self.nbytes)

    def places(self, numbers: Places) -> Iterator[tuple[Layer, Places]]:
        """Yield by layers which cells are changed for some rising numbers to be zero; rising.

        Both are counted row by row, or both in one row.
        """
        blocks, inside = np.divmod(numbers, self.block)
        for layer in self.layers:
            cells = layer.cells[inside]
            touched = cells >= 0
            found = (blocks * (self.nbytes // self.cell) + cells)[touched]
            yield layer, np.sort(found, kind="stable")  # the fastest where all or nearly all are in order already

    def nonzero(self, cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array with one element for each number in some rows of cells, zero where the number is.

        What is packed is judged by the numbers themselves: a code of zero is none where the scale is not finite.
        """
        if self.block == 1:
            return cells
        with np.errstate(all="ignore"):
            return (self.read(cells.reshape(-1).view(np.uint8)) != 0).reshape(len(cells), -1)


def _float8_e4m3() -> npt.NDArray[np.float32]:
    """The value of every byte: 4 bits of exponent with bias 7, 3 of mantissa, no infinities (arXiv 2209.05433)."""
    byte = np.arange(128)
    exponent, mantissa = byte >> 3, byte & 7
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_E4M3 = _float8_e4m3()


def _plain(kind: str, read: Callable[[Array], Array] = lambda raw: raw, coarseness: str = "") -> Format:
    size = np.dtype(kind).itemsize
    return Format(size, size, lambda data: read(data.view(kind)), coarseness=coarseness)


FORMATS = {
    "F64": _plain("<f8"),
    "F32": _plain("<f4"),
    "F16": _plain("<f2"),
    "BF16": _plain("<u2", lambda raw: (raw.astype("<u4") << 16).view("<f4")),
    "F8_E4M3": _plain("u1", lambda raw: _E4M3[raw], "-e4m3"),
    "F8_E5M2": _plain("u1", lambda raw: (raw.astype("<u2") << 8).view("<f2"), "-e5m2"),
}
