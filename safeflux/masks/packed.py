"""One mask as packed bits: the form that it has in a file, in memory and when masks are composed. NumPy alone.

A mask says for each of its elements whether it is kept. One mask has exactly one array, and the share of elements that
are off decides its form. Sparse, where fewer than one in 32 is off: the rising numbers of those, 4 bytes each. Dense:
one bit an element, 1 = keep. So 2 billion weights of which a few are off take megabytes, and an AND of dense masks
touches an eighth of what an AND of bools would.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from safeflux.cached import cached_property
from safeflux.errors import MaskFileError

MAX_BITS = 1 << 32
SPARSE_BELOW = 32
"""A mask is sparse if fewer than 1 in this many elements are off: 4 bytes per index then take less than 1 bit each."""
DENSE, SPARSE = np.dtype("u1"), np.dtype("<u4")

Array = npt.NDArray[Any]
Keep = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PackedMask:
    """One mask, packed. Immutable; compares by content.

    Attributes:
        array: Dense: bytes, where bit k (from the lowest) of byte b is element 8b + k, 1 = keep, and the bits after the
            last element are zero. Sparse: uint32, the sorted indices of the elements that are off, in row-major order.
        shape: Of the mask.
    """

    array: Array
    shape: tuple[int, ...]

    @classmethod
    def of(cls, keep: Keep) -> "PackedMask":
        """Pack a bool array, True = keep.

        Raises:
            MaskFileError: It has more elements than an index can address.
        """
        if keep.size > MAX_BITS:
            raise MaskFileError(f"expected at most {MAX_BITS} bits, got {keep.size}")
        flat = keep.ravel()
        if _is_sparse(flat.size - int(np.count_nonzero(flat)), flat.size):
            return cls(np.flatnonzero(~flat).astype(SPARSE), keep.shape)
        return cls(np.packbits(flat, bitorder="little"), keep.shape)

    @classmethod
    def read(cls, name: str, array: Array, shape: tuple[int, ...]) -> "PackedMask":
        """Check an array from outside. Law: if `of` made the mask, `read(name, mask.array, mask.shape)` equals it.

        Raises:
            MaskFileError: The array is not what `of` makes of any mask of this shape; `name` is in the message.
        """
        bits, size = cls(array, shape), math.prod(shape)
        if array.dtype == DENSE:
            if size % 8 and array[-1] >> (size % 8):
                raise MaskFileError(f"tensor {name!r}: expected zero padding bits after bit {size - 1}, got a one")
        elif array.size and (array[-1] >= size or (array[1:] <= array[:-1]).any()):
            raise MaskFileError(f"tensor {name!r}: expected strictly increasing indices below {size}, got others")
        if _is_sparse(bits.num_off, size) != (array.dtype == SPARSE):
            raise MaskFileError(
                f"tensor {name!r}: {bits.num_off} of {size} bits are off, which is not encoded as {array.dtype.name}"
            )
        return bits

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @cached_property
    def num_off(self) -> int:
        """How many elements are off."""
        if self.array.dtype == SPARSE:
            return int(self.array.size)
        return self.size - int(np.bitwise_count(self.array).sum(dtype=np.int64))

    def keep(self) -> Keep:
        """Return the mask as a bool array, True = keep; a new one every time."""
        if self.array.dtype == DENSE:
            flat = np.unpackbits(self.array, count=self.size, bitorder="little").view(np.bool_)
        else:
            flat = np.ones(self.size, dtype=np.bool_)
            flat[self.array] = False
        return flat.reshape(self.shape)

    def off(self) -> npt.NDArray[np.int64]:
        """Return the sorted indices of the elements that are off, in row-major order; int64."""
        if self.array.dtype == SPARSE:
            return self.array.astype(np.int64)
        return np.flatnonzero(~self.keep().ravel()).astype(np.int64, copy=False)

    def __eq__(self, other: object) -> bool:
        """Return whether the other has the same shape and bits: equal masks have equal arrays."""
        if not isinstance(other, PackedMask):
            return NotImplemented
        same_form = self.shape == other.shape and self.array.dtype == other.array.dtype
        return same_form and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        """Consistent with equality."""
        return hash((self.shape, self.num_off))


def all_of(bits: Sequence[PackedMask]) -> PackedMask:
    """Return the AND of masks of one shape, at least one."""
    if len(bits) == 1:
        return bits[0]
    dense = [one.array for one in bits if one.array.itemsize == DENSE.itemsize]
    sparse = [one.array for one in bits if one.array.itemsize == SPARSE.itemsize]
    shape, size = bits[0].shape, bits[0].size
    off = np.unique(np.concatenate(sparse)) if sparse else np.empty(0, SPARSE)
    if not dense and _is_sparse(off.size, size):
        return PackedMask(off, shape)
    # a dense mask has enough elements off, and an AND has at least as many
    both = dense[0].copy() if dense else _all_kept(size)
    for array in dense[1:]:
        np.bitwise_and(both, array, out=both)
    np.bitwise_and.at(both, off >> 3, ~(1 << (off & 7)).astype(DENSE))
    return PackedMask(both, shape)


def num_off_in_both(one: PackedMask, other: PackedMask) -> int:
    """Return the number of elements that two masks of one shape both switch off; nothing is unpacked."""
    if one.array.dtype == other.array.dtype == DENSE:
        return one.size - int(np.bitwise_count(one.array | other.array).sum(dtype=np.int64))
    if one.array.dtype == other.array.dtype == SPARSE:
        return int(np.intersect1d(one.array, other.array, assume_unique=True).size)
    dense, numbers = (one.array, other.array) if one.array.dtype == DENSE else (other.array, one.array)
    return int(np.count_nonzero((dense[numbers >> 3] >> (numbers & 7)) & 1 == 0))


def _all_kept(size: int) -> Array:
    """The dense array of a mask that keeps everything; the bits after the last element are zero."""
    array = np.full(-(-size // 8), 255, DENSE)
    if size % 8:
        array[-1] = (1 << size % 8) - 1
    return array


def _is_sparse(num_off: int, size: int) -> bool:
    return num_off * SPARSE_BELOW < size
