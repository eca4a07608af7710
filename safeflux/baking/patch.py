"""What masks change in the tensors of a file: which rows, columns and single elements become zero. NumPy alone.

A tensor is worked on some rows at a time, as a matrix of unsigned integers, so that no more than a few megabytes are
ever held: in every float format a zero is all bits zero. In a packed format it is a code in some bits of a block.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from safeflux.checkpoints.number_formats import FORMATS, Cells, Format
from safeflux.checkpoints.zero_codes import Layer, Places
from safeflux.masks.spots import Spot

Layered = Sequence[tuple[Layer, Places]]
"""Which cells are changed, and how; rising, and no cell twice in a layer."""


@dataclass(frozen=True)
class Patch:
    """What becomes zero in one tensor, seen as a matrix of so many cells a row."""

    num_cells: int
    rows: Places
    """Their numbers, sorted and unique."""
    columns: Layered
    """Cells of a row."""
    points: Layered
    """Single cells, counted row by row."""

    @classmethod
    def of(cls, spots: Iterable[Spot], num_columns: int, format: Format = FORMATS["F32"]) -> "Patch":
        """Join what several sites have in a tensor.

        Args:
            spots: What is masked.
            num_columns: Numbers in a row.
            format: How they lie there; by default, each is one cell.
        """
        parts: dict[str, list[Places]] = {"rows": [], "columns": [], "points": []}
        for spot in spots:
            start, off = spot.span.start, spot.bits.off()
            if len(spot.bits.shape) == 2:
                parts["points"].append(off + start * num_columns)
            else:
                parts["columns" if spot.span.axis else "rows"].append(off + start)
        rows, columns, points = (
            np.unique(np.concatenate(several)) if several else np.empty(0, np.int64) for several in parts.values()
        )
        num_cells = num_columns * format.nbytes // (format.block * format.cell)
        return cls(num_cells, rows, _layered(format, columns), _layered(format, points))

    def fill_(self, cells: Cells, first: int) -> None:
        """Set to zero what is masked in some rows, the first of which is number `first`; in place.

        Args:
            cells: Unsigned integers of shape (rows, columns).
            first: Number of the first row in the tensor.
        """
        if self.columns:
            stay, put = (line.astype(cells.dtype) for line in self._lines)
            cells &= stay
            if put.any():
                cells |= put
        for layer, places in self.points:
            layer.fill_(cells.reshape(-1), between(places, first * self.num_cells, cells.size))
        if self.rows.size:  # last: whatever else is masked there, all of their bytes are zero
            cells[between(self.rows, first, len(cells))] = 0

    @cached_property
    def _lines(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which bits of a row stay, and which are set: what columns make of ones (-1, however cast) and of zeros."""
        lines = np.full(self.num_cells, -1), np.zeros(self.num_cells, np.int64)
        for line in lines:
            for layer, places in self.columns:
                layer.fill_(line, places)
        return lines


def _layered(format: Format, numbers: Places) -> Layered:
    return list(format.places(numbers)) if numbers.size else ()


def between(numbers: Places, first: int, count: int) -> Places:
    """Those of some sorted numbers that lie in a range, counted from its beginning."""
    begin, end = np.searchsorted(numbers, (first, first + count))
    return numbers[begin:end] - first
