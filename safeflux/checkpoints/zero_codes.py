"""The bits of a packed block that belong to one number, and their value for which that number is exactly zero.

No layout is hard-coded: it is found by experiment. Each bit of some random blocks is flipped, and those that change
only one number are its code; then every code is tried. In some types none is zero, since a minimum is added, the table
of values has no zero, or numbers share their bits. The result is verified on other blocks before it is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Read = Callable[[Bytes], npt.NDArray[np.generic]]
"""Returns the numbers of some blocks, given their bytes; both flat."""
_DRAWN, _TRIED = 64, 8
"""Random blocks, and how many of those with finite numbers are used to find the codes; as many more verify them."""
_MAX_WIDTH = 8
"""Bits of a code; for wider ones there are too many to try."""


@dataclass(frozen=True, eq=False)
class Layer:
    """How numbers are set to zero in one cell each. A number whose code spans several cells needs several layers."""

    keep: int
    """Bits of the cell to keep."""
    put: int
    """Bits to set."""
    cells: Places
    """For each number of a block its cell; -1 for a number that this layer does not change."""

    def fill_(self, cells: npt.NDArray[Any], places: Places) -> None:
        """Apply it in place to cells of a flat array, at unique indices."""
        # nothing has to be read if no bit is kept: plain floats
        cells[places] = cells[places] & self.keep | self.put if self.keep else self.put


ALONE = (Layer(0, 0, np.zeros(1, np.int64)),)
"""The layers of a plain number: its only cell becomes zero."""


def find_layers(read: Read, block: int, nbytes: int) -> Sequence[Layer]:
    """Find how each number of a block can be set to zero while all others are unchanged; cells are bytes.

    Args:
        read: Reads blocks.
        block: Numbers in a block.
        nbytes: Bytes of a block.

    Returns:
        The layers; empty if some number cannot be set to zero alone.

    Example:
        >>> def read(data):  # two numbers a byte, as 4 bits below and above zero
        ...     return (np.stack([data & 15, data >> 4], 1).reshape(-1) - 8.0).astype(np.float32)
        >>> [(hex(layer.keep), hex(layer.put), layer.cells.tolist()) for layer in find_layers(read, 4, 2)]
        [('0xf', '0x80', [-1, 0, -1, 1]), ('0xf0', '0x8', [0, -1, 1, -1])]
    """
    with np.errstate(all="ignore"):  # random scales are not always numbers
        drawn = np.random.default_rng(0).integers(0, 256, (_DRAWN, nbytes), dtype=np.uint8)
        finite = np.isfinite(read(drawn.reshape(-1)).reshape(_DRAWN, block)).all(axis=1)
        tried, others = drawn[finite][:_TRIED], drawn[finite][_TRIED : 2 * _TRIED]
        if len(others) < _TRIED:
            return []
        bits = _own_bits(read, tried, block)
        code = _zero(read, tried, bits)
        layers = [] if code is None else _layers(bits, code, nbytes)
        return layers if _is_proven(read, others, block, layers) else []


def _own_bits(read: Read, blocks: Bytes, block: int) -> Places:
    """The sorted bits of each number's code: shape (numbers, bits of a code); no bits if there is no such code."""
    num_bits = 8 * blocks.shape[1]
    flips = _pack(np.eye(num_bits, dtype=np.uint8))
    touched = np.zeros((num_bits, block), np.bool_)
    for each in blocks:
        touched |= read((flips ^ each).reshape(-1)).reshape(num_bits, block) != read(each)
    own = np.flatnonzero(touched.sum(axis=1) == 1)
    number = touched[own].argmax(axis=1)
    widths = np.bincount(number, minlength=block)
    if widths.min() != widths.max() or widths.max() > _MAX_WIDTH:
        return np.empty((block, 0), np.int64)
    return own[np.argsort(number, kind="stable")].reshape(block, -1)


def _zero(read: Read, blocks: Bytes, bits: Places) -> Bytes | None:
    """The first code, bit by bit, for which all numbers of all blocks are zero; None if there is none."""
    flags = np.unpackbits(blocks, axis=1, bitorder="little")
    shifts = np.arange(bits.shape[1])
    for code in range(1 << len(shifts)):
        flags[:, bits] = code >> shifts & 1
        if not read(_pack(flags).reshape(-1)).any():
            return (code >> shifts & 1).astype(np.uint8)
    return None


def _layers(bits: Places, code: Bytes, nbytes: int) -> list[Layer]:
    """Group the changes of cells by the bits that are kept and set."""
    masks, puts = np.zeros((2, len(bits), 8 * nbytes), np.uint8)
    np.put_along_axis(masks, bits, 1, axis=1)
    np.put_along_axis(puts, bits, np.broadcast_to(code, bits.shape), axis=1)
    numbers, cells = np.nonzero(_pack(masks))
    changes = np.stack([~_pack(masks)[numbers, cells], _pack(puts)[numbers, cells]], axis=1)
    layers = []
    for change in np.unique(changes, axis=0):
        here = (changes == change).all(axis=1)
        places = np.full(len(bits), -1)
        places[numbers[here]] = cells[here]
        layers.append(Layer(int(change[0]), int(change[1]), places))
    return layers


def _is_proven(read: Read, blocks: Bytes, block: int, layers: Sequence[Layer]) -> bool:
    """Whether each number becomes zero alone, with all others unchanged."""
    for each in blocks:
        tried = np.tile(each, (block, 1))
        for layer in layers:
            numbers = np.flatnonzero(layer.cells >= 0)
            layer.fill_(tried.reshape(-1), numbers * each.size + layer.cells[numbers])
        expected = np.tile(read(each), (block, 1))
        np.fill_diagonal(expected, 0)
        if not np.array_equal(read(tried.reshape(-1)), expected.reshape(-1)):
            return False
    return True


def _pack(flags: Bytes) -> Bytes:
    return np.packbits(flags, axis=-1, bitorder="little")
