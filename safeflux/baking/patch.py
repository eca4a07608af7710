"""The changes that masks make in the tensors of a file: rows, columns and single elements to zero. NumPy only.

A tensor is edited some rows at a time, as a matrix of unsigned integers, so only a few megabytes are in memory. In
every float format zero is all bits zero. In a packed format it is a code in some bits of a block.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safeflux.cached import cached_property
from safeflux.checkpoints.number_formats import FORMATS, Cells, Format
from safeflux.checkpoints.zero_codes import Layer, Places
from safeflux.masks.spots import Spot

Layered = Sequence[tuple[Layer, Places]]
"""The cells to change, and how; sorted and unique in each layer."""


@dataclass(frozen=True)
class Patch:
    """The zeros to write into one tensor, viewed as a matrix with `num_cells` cells per row."""

    num_cells: int
    rows: Places
    """Indices, sorted and unique."""
    columns: Layered
    """Cells of a row."""
    points: Layered
    """Single cells, by row-major index."""

    @classmethod
    def of(cls, spots: Iterable[Spot], num_columns: int, format: Format = FORMATS["F32"]) -> "Patch":
        """Merge the masked places of several sites in a tensor.

        Args:
            spots: The masked places.
            num_columns: Numbers in a row.
            format: Their number format; by default, each is one cell.
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
        """Set masked places to zero in place, in some rows of the tensor starting at row `first`.

        Args:
            cells: Unsigned integers of shape (rows, columns).
            first: Index of the first row in the tensor.
        """
        if self.columns:
            stay, put = (line.astype(cells.dtype) for line in self._lines)
            cells &= stay
            if put.any():
                cells |= put
        for layer, places in self.points:
            layer.fill_(cells.reshape(-1), between(places, first * self.num_cells, cells.size))
        if self.rows.size:  # last, so that all of their bytes are zero whatever else is masked there
            cells[between(self.rows, first, len(cells))] = 0

    @cached_property
    def _lines(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The bits of a row to keep and to set: the effect of columns on all ones (-1, in any type) and on zeros."""
        lines = np.full(self.num_cells, -1), np.zeros(self.num_cells, np.int64)
        for line in lines:
            for layer, places in self.columns:
                layer.fill_(line, places)
        return lines


def _layered(format: Format, numbers: Places) -> Layered:
    return list(format.places(numbers)) if numbers.size else ()


def between(numbers: Places, first: int, count: int) -> Places:
    """The sorted numbers that are in a range, relative to its beginning."""
    begin, end = np.searchsorted(numbers, (first, first + count))
    return numbers[begin:end] - first
