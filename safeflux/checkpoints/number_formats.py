"""Number formats in files, by their names in safetensors. NumPy has neither bf16 nor float8.

In each of them zero is all bits zero. Packed formats (several numbers in a byte, blocks with a scale) can be described
by `Format` too; they are defined in `gguf_file`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from safeflux.cached import cached_property
from safeflux.checkpoints.zero_codes import ALONE, Layer, Places, Read, find_layers

Array = npt.NDArray[np.generic]
Cells = npt.NDArray[np.unsignedinteger[Any]]
"""Raw numbers, viewed as unsigned integers."""


@dataclass(frozen=True)
class Format:
    """How numbers are stored: in blocks, with a whole number of blocks per row. For plain floats a block is one number.

    A block of zero bytes holds zeros.
    """

    nbytes: int
    """Bytes of a block."""
    cell: int
    """Bytes of the unsigned integers as which blocks are edited."""
    read: Read
    block: int = 1
    """Numbers in a block."""
    coarseness: str = ""
    """The suffix of the fingerprint of a model with such weights, a key of `fingerprint.TOLERANCE`."""

    def decode(self, data: bytes | memoryview) -> npt.NDArray[np.float64]:
        r"""Return the numbers of some blocks.

        Example:
            >>> FORMATS["BF16"].decode(b"\x80\x3f"), FORMATS["F8_E4M3"].decode(b"\x38")
            (array([1.]), array([1.]))
        """
        with np.errstate(all="ignore"):  # a damaged scale may be no number
            return self.read(np.frombuffer(data, dtype=np.uint8)).astype(np.float64)

    def take(self, read: Callable[[Places], bytes], places: Places) -> npt.NDArray[np.float64]:
        """Return single numbers of a tensor, by their row-major indices.

        Args:
            read: Returns the bytes of some blocks of the tensor, one after the other, by the blocks' indices.
            places: The indices of the numbers.
        """
        blocks, inside = np.divmod(places, self.block)
        return self.decode(read(blocks)).reshape(-1, self.block)[np.arange(len(inside)), inside]

    @cached_property
    def layers(self) -> Sequence[Layer]:
        """How a single number is set to zero without changing others; empty if that is impossible."""
        return ALONE if self.block == 1 else find_layers(self.read, self.block, self.nbytes)

    def places(self, numbers: Places) -> Iterator[tuple[Layer, Places]]:
        """Yield, layer by layer, the sorted cells to change so that numbers at sorted indices become zero.

        Both are row-major indices, or both are indices in one row.
        """
        blocks, inside = np.divmod(numbers, self.block)
        for layer in self.layers:
            cells = layer.cells[inside]
            touched = cells >= 0
            found = (blocks * (self.nbytes // self.cell) + cells)[touched]
            yield layer, np.sort(found, kind="stable")  # fastest for input that is already sorted or nearly so

    def nonzero(self, cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array with one element for each number in some rows of cells, zero where the number is zero.

        Packed numbers are decoded first: a code of zero is not a zero if the scale is not finite.
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
