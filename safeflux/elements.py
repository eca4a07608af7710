"""Which elements of a tensor a mask switches off, and what is done with them: read, fill, put back, check.

Two kinds: whole rows or columns (neurons), and single elements (weights). All work on tensors of integers, the bits of
the weights. On a CPU columns are the slow ones, each element on a cache line of its own; so they are read by NumPy,
whose loop is three times as fast as torch's, and filled by an AND over whole rows, which is ten times as fast.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

_DENSE = 16
"""From one column in this many on, an AND over whole rows is faster than writing the columns."""
_CHUNK = 1 << 20
"""Elements that are checked at a time: what stays in a core's cache."""


class Elements(Protocol):
    """Some elements of a tensor."""

    def read(self, bits: torch.Tensor) -> torch.Tensor:
        """Return a copy of them."""

    def fill_(self, bits: torch.Tensor) -> None:
        """Set all their bits to zero."""

    def put_(self, bits: torch.Tensor, values: torch.Tensor) -> None:
        """Write what `read` returned."""

    def are_zero(self, bits: torch.Tensor) -> bool:
        """Whether all are zero; faster than `read`."""

    def nonzero(self, bits: torch.Tensor) -> torch.Tensor:
        """For each row, column or single element, whether anything in it is not zero; bool."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Whole rows (axis 0) or columns (axis 1)."""

    axis: int
    numbers: torch.Tensor
    """Which, rising; int64."""

    def read(self, bits: torch.Tensor) -> torch.Tensor:
        """See `Elements`."""
        if self.axis == 1 and bits.device.type == "cpu":
            return torch.from_numpy(np.take(bits.numpy(), self.numbers.numpy(), axis=1))
        return bits.index_select(self.axis, self.numbers.to(bits.device))

    def fill_(self, bits: torch.Tensor) -> None:
        """See `Elements`."""
        if self.axis == 1 and len(self.numbers) * _DENSE >= bits.shape[1]:
            bits.bitwise_and_(~self._line(bits))
        else:
            bits.index_fill_(self.axis, self.numbers.to(bits.device), 0)

    def put_(self, bits: torch.Tensor, values: torch.Tensor) -> None:
        """See `Elements`."""
        bits.index_copy_(self.axis, self.numbers.to(bits.device), values.to(bits.device))

    def are_zero(self, bits: torch.Tensor) -> bool:
        """See `Elements`."""
        step = max(1, _CHUNK // max(1, bits[0].numel()))
        if self.axis == 1:
            line = self._line(bits)
            return not any((rows & line).count_nonzero() for rows in bits.split(step))
        numbers = self.numbers.to(bits.device)
        return not any(bits.index_select(0, part).count_nonzero() for part in numbers.split(step))

    def nonzero(self, bits: torch.Tensor) -> torch.Tensor:
        """See `Elements`."""
        found = self.read(bits) != 0
        return found if found.dim() == 1 else found.any(dim=1 - self.axis)

    def _line(self, bits: torch.Tensor) -> torch.Tensor:
        """One row with all bits set in these columns."""
        line = torch.zeros(bits.shape[1], dtype=bits.dtype)
        line[self.numbers] = ~line[0]
        return line.to(bits.device)


@dataclass(frozen=True, eq=False)
class Points:
    """Single elements."""

    places: torch.Tensor
    """Where they lie in the tensor, counted row by row; int64."""

    def read(self, bits: torch.Tensor) -> torch.Tensor:
        """See `Elements`."""
        return bits.take(self.places.to(bits.device))

    def fill_(self, bits: torch.Tensor) -> None:
        """See `Elements`."""
        self.put_(bits, torch.zeros(len(self.places), dtype=bits.dtype))

    def put_(self, bits: torch.Tensor, values: torch.Tensor) -> None:
        """See `Elements`."""
        bits.put_(self.places.to(bits.device), values.to(bits.device))

    def are_zero(self, bits: torch.Tensor) -> bool:
        """See `Elements`."""
        return not any(bits.take(part.to(bits.device)).count_nonzero() for part in self.places.split(_CHUNK))

    def nonzero(self, bits: torch.Tensor) -> torch.Tensor:
        """See `Elements`."""
        return self.read(bits) != 0


def off_places(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask is off, counted row by row; int64. NumPy finds them twice as fast as torch.

    Examples:
        >>> off_places(torch.tensor([[True, False], [True, True], [False, True]]))
        tensor([1, 4])
    """
    return torch.from_numpy(np.flatnonzero(~mask.numpy()))
