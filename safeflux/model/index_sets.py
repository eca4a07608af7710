"""Which elements of a tensor a mask switches off, and what is done with them: read, fill, put back, check.

Two kinds: whole rows or columns (neurons), and single elements (weights). All work on tensors of integers, the bits of
the weights. On a CPU columns are the slow ones, each element on a cache line of its own; so they are read by NumPy,
whose loop is three times as fast as torch's, and filled by an AND over whole rows, which is ten times as fast. What two
masks share is found from their numbers alone, without going over the tensor.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
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

    def filling(self, bits: torch.Tensor) -> Callable[[], object]:
        """Return what does `fill_`, with all that it needs at hand; it writes to the tensor once."""

    def putting(self, bits: torch.Tensor, values: torch.Tensor) -> Callable[[], object]:
        """Return what does `put_` of these values, likewise."""

    def are_zero(self, bits: torch.Tensor) -> bool:
        """Whether all are zero; faster than `read`."""

    def nonzero(self, bits: torch.Tensor) -> torch.Tensor:
        """For each row, column or single element, whether anything in it is not zero; bool."""

    def to(self, device: torch.device) -> "Elements":
        """Return the same with its numbers on a device, for tensors there that are filled again and again."""

    def __len__(self) -> int:
        """How many rows, columns or single elements."""


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
        self.filling(bits)()

    def put_(self, bits: torch.Tensor, values: torch.Tensor) -> None:
        """See `Elements`."""
        self.putting(bits, values)()

    def filling(self, bits: torch.Tensor) -> Callable[[], object]:
        """See `Elements`."""
        if self.axis == 1 and self._are_dense(bits):
            return partial(bits.bitwise_and_, ~self._line(bits))
        return partial(bits.index_fill_, self.axis, self.numbers.to(bits.device), 0)

    def putting(self, bits: torch.Tensor, values: torch.Tensor) -> Callable[[], object]:
        """See `Elements`."""
        return partial(bits.index_copy_, self.axis, self.numbers.to(bits.device), values.to(bits.device))

    def are_zero(self, bits: torch.Tensor) -> bool:
        """See `Elements`."""
        step = max(1, _CHUNK // max(1, bits[0].numel()))
        if self.axis == 1 and not self._are_dense(bits):
            return all(_are_zero(self.read(rows)) for rows in bits.split(max(1, _CHUNK // max(1, len(self)))))
        if self.axis == 1:
            line = self._line(bits)
            return all(_are_zero(rows & line) for rows in bits.split(step))
        numbers = self.numbers.to(bits.device)
        return all(_are_zero(bits.index_select(0, part)) for part in numbers.split(step))

    def nonzero(self, bits: torch.Tensor) -> torch.Tensor:
        """See `Elements`."""
        found = self.read(bits) != 0
        return found if found.dim() == 1 else found.any(dim=1 - self.axis)

    def to(self, device: torch.device) -> "Lines":
        """See `Elements`."""
        return Lines(self.axis, self.numbers.to(device))

    def __len__(self) -> int:
        """See `Elements`."""
        return len(self.numbers)

    def _are_dense(self, bits: torch.Tensor) -> bool:
        """Whether a pass over whole rows is faster than one over these columns."""
        return len(self.numbers) * _DENSE >= bits.shape[1]

    def _line(self, bits: torch.Tensor) -> torch.Tensor:
        """One row with all bits set in these columns."""
        line = torch.zeros(bits.shape[1], dtype=bits.dtype, device=self.numbers.device)
        line[self.numbers] = ~line[0]
        return line.to(bits.device)

    def crossed(self, places: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which single elements of a tensor are in the lines, and where in what `read` returns, counted row by row."""
        row, column = places // width, places % width
        which, line = _matches(column if self.axis else row, self.numbers)
        return which, row[which] * len(self.numbers) + line if self.axis else line * width + column[which]


@dataclass(frozen=True, eq=False)
class Points:
    """Single elements."""

    places: torch.Tensor
    """Where they lie in the tensor, counted row by row; int64."""

    def read(self, bits: torch.Tensor) -> torch.Tensor:
        """See `Elements`. torch's `take` does the same, more slowly."""
        return bits.reshape(-1).index_select(0, self.places.to(bits.device))

    def fill_(self, bits: torch.Tensor) -> None:
        """See `Elements`."""
        self.filling(bits)()

    def put_(self, bits: torch.Tensor, values: torch.Tensor) -> None:
        """See `Elements`."""
        self.putting(bits, values)()

    def filling(self, bits: torch.Tensor) -> Callable[[], object]:
        """See `Elements`."""
        places = self.places.to(bits.device)
        if bits.is_contiguous():
            return partial(bits.view(-1).index_fill_, 0, places, 0)
        return partial(bits.index_put_, torch.unravel_index(places, bits.shape), bits.new_zeros(()))

    def putting(self, bits: torch.Tensor, values: torch.Tensor) -> Callable[[], object]:
        """See `Elements`."""
        # not `put_`, which torch refuses under `use_deterministic_algorithms`
        places, values = self.places.to(bits.device), values.to(bits.device)
        if bits.is_contiguous():
            return partial(bits.view(-1).index_copy_, 0, places, values)
        return partial(bits.index_put_, torch.unravel_index(places, bits.shape), values)

    def are_zero(self, bits: torch.Tensor) -> bool:
        """See `Elements`."""
        flat = bits.reshape(-1)
        return all(_are_zero(Points(part).read(flat)) for part in self.places.split(_CHUNK))

    def nonzero(self, bits: torch.Tensor) -> torch.Tensor:
        """See `Elements`."""
        return self.read(bits) != 0

    def to(self, device: torch.device) -> "Points":
        """See `Elements`."""
        return Points(self.places.to(device))

    def __len__(self) -> int:
        """See `Elements`."""
        return len(self.places)


def common(one: Elements, other: Elements, width: int) -> tuple[Elements, Elements]:
    """What both hold: where it lies in what one of them reads from a tensor, and in what the other reads.

    Args:
        one: Any elements, at least one.
        other: Likewise.
        width: Elements of one row of the tensor.

    Examples:
        >>> mine, theirs = common(Lines(0, torch.tensor([1, 4])), Lines(0, torch.tensor([4, 5, 6])), width=8)
        >>> mine.numbers.tolist(), theirs.numbers.tolist()
        ([1], [0])
    """
    (axis, mine), (other_axis, theirs) = kind_of(one), kind_of(other)
    if axis == other_axis:
        here, there = _in_both(mine, theirs)
    elif isinstance(one, Lines) and isinstance(other, Lines):
        return other, one  # they cross: what is read of one has the other's lines whole
    elif isinstance(other, Lines):
        here, there = other.crossed(mine, width)
    else:
        theirs_first = common(other, one, width)
        return theirs_first[1], theirs_first[0]
    return elements_of(axis, here), elements_of(axis, there)


def without(one: Elements, shared: Iterable[Elements]) -> tuple[Elements, Elements, list[Elements]]:
    """What of some elements others do not share, as `common` returns it.

    Returns:
        The rows, columns or elements that are left, where these lie in what is read, and where in it parts of lines are
        shared.

    Examples:
        >>> left, where, parts = without(Lines(0, torch.tensor([1, 4, 6])), [Lines(0, torch.tensor([1]))])
        >>> left.numbers.tolist(), where.numbers.tolist(), parts
        ([1, 6], [0, 2], [])
    """
    axis, numbers = kind_of(one)
    is_shared, parts = torch.zeros(len(numbers), dtype=torch.bool), []
    for part in shared:
        part_axis, places = kind_of(part)
        if part_axis == axis:
            is_shared[places] = True
        else:
            parts.append(part)
    left = off_places(is_shared)
    return elements_of(axis, numbers[left]), elements_of(axis, left), parts


def copy_(bits: torch.Tensor, here: Elements, values: torch.Tensor, there: Elements) -> None:
    """Write what some elements read from values to others of as many, in pieces that a core's cache holds."""
    (axis, numbers), (other_axis, places) = kind_of(here), kind_of(there)
    if axis != other_axis:
        here.put_(bits, there.read(values))
    elif axis == 1:
        step = max(1, _CHUNK // max(1, len(numbers)))
        for to, of in zip(bits.split(step), values.split(step), strict=True):
            here.put_(to, there.read(of))
    else:
        step = _CHUNK if axis is None else max(1, _CHUNK // bits[0].numel())
        for to, of in zip(numbers.split(step), places.split(step), strict=True):
            elements_of(axis, to).put_(bits, elements_of(axis, of).read(values))


def _are_zero(copied: torch.Tensor) -> bool:
    """Whether a copy of elements is all zero; eight bytes at a time, which is faster."""
    flat = copied.reshape(-1)
    return not (flat.view(torch.int64) if copied.nbytes % 8 == 0 else flat).count_nonzero()


def kind_of(elements: Elements) -> tuple[int | None, torch.Tensor]:
    """Axis and numbers; single elements have no axis: they are lines of a tensor that is one long row."""
    if isinstance(elements, Lines):
        return elements.axis, elements.numbers
    assert isinstance(elements, Points)
    return None, elements.places


def elements_of(axis: int | None, numbers: torch.Tensor) -> Elements:
    """The elements of an axis, or single ones; see `kind_of`."""
    return Points(numbers) if axis is None else Lines(axis, numbers)


def _matches(numbers: torch.Tensor, rising: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which numbers are among rising ones, at least one, and where there."""
    found = np.searchsorted(rising.numpy(), numbers.numpy())
    which = np.flatnonzero(np.take(rising.numpy(), found, mode="clip") == numbers.numpy())
    return torch.from_numpy(which), torch.from_numpy(found[which])


def _in_both(mine: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where equal numbers are in each of two that rise. A stable sort merges them, which is faster than searching."""
    both = torch.cat([mine, theirs]).numpy()
    order = np.argsort(both, kind="stable")
    ordered = both[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    return torch.from_numpy(order[twice]), torch.from_numpy(order[twice + 1] - len(mine))


def off_places(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask is off, counted row by row; int64. NumPy finds them twice as fast as torch.

    Examples:
        >>> off_places(torch.tensor([[True, False], [True, True], [False, True]]))
        tensor([1, 4])
    """
    return torch.from_numpy(np.flatnonzero(~mask.numpy()))
