"""A tensor file with zeros where masks say so, made or compared some megabytes at a time.

Whatever the size of a file, a few megabytes of it are held. Bytes that no mask touches are copied by the system.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from safeflux.copying import CHUNK, Tell, copy_range, read_into, write_all
from safeflux.errors import BakeError
from safeflux.patch import Cells, Patch, Spot
from safeflux.tensorfile import Stored, WeightFile

_HELD = 1 << 18
"""Bytes of a masked tensor that are held at a time: what stays in a core's cache is written several times as fast."""


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file that lie side by side: a tensor that masks touch, or all up to the next of those."""

    start: int
    size: int
    touched: tuple[Stored, Sequence[Spot]] | None = None


def write_masked(
    file: WeightFile, spots: Mapping[str, Sequence[Spot]], metadata: Mapping[str, str], target: Path, tell: Tell
) -> None:
    """Write a file with more metadata, and zeros where it is masked.

    Args:
        file: The source.
        spots: What is masked, by the name of the tensor in the file.
        metadata: What is added to the header.
        target: The path to write to.
        tell: Is told the bytes that are done.

    Raises:
        OSError: The disk is full, or something like it.
    """
    with file.path.open("rb", buffering=0) as source, target.open("wb", buffering=0) as out:
        write_all(out, memoryview(file.header_with(metadata)))
        for stretch in stretches(file, spots):
            if stretch.touched is None:
                copy_range(source, out, stretch.start, stretch.size, tell)
                continue
            for cells in masked_rows(source, *stretch.touched):
                write_all(out, bytes_of(cells))
                tell(cells.nbytes)


def check_masked(
    file: WeightFile, spots: Mapping[str, Sequence[Spot]], metadata: Mapping[str, str], target: Path, tell: Tell
) -> int:
    """Make sure that a file is what `write_masked` would write, byte for byte; return how many bytes masks changed.

    Raises:
        BakeError: It is not; the message says where it differs first.
    """
    changed = 0
    with file.path.open("rb", buffering=0) as source, target.open("rb", buffering=0) as made:
        header = file.header_with(metadata)
        if made.read(len(header)) != header:
            raise BakeError(f"{target}: its header is not what these masks give; was it baked by other masks?")
        for stretch in stretches(file, spots):
            for place, before, after in _compared(source, stretch):
                _expect(target, made, after, stretch, place)
                changed += int(np.count_nonzero(before.view(np.uint8) != after.view(np.uint8)))
                tell(after.nbytes)
        if made.read(1):
            raise BakeError(f"{target}: bytes follow after the last tensor")
    return changed


def stretches(file: WeightFile, spots: Mapping[str, Sequence[Spot]]) -> Iterator[Stretch]:
    """Cut the data of a file into what masks touch and what they do not, in its order."""
    done = file.data_start
    for name, tensor in file.tensors.items():
        if name in spots:
            if tensor.start > done:
                yield Stretch(done, tensor.start - done)
            yield Stretch(tensor.start, tensor.nbytes, (tensor, spots[name]))
            done = tensor.start + tensor.nbytes
    if file.num_bytes > done:
        yield Stretch(done, file.num_bytes - done)


def rows_of(source: BinaryIO, tensor: Stored) -> Iterator[tuple[int, Cells]]:
    """Yield a tensor some rows at a time: the number of the first, and the rows as integers, in one buffer."""
    cell = tensor.format.cell
    step = min(tensor.num_rows, max(1, _HELD // tensor.bytes_per_row))
    buffer = np.empty((step, tensor.bytes_per_row // cell), dtype=f"<u{cell}")
    source.seek(tensor.start)
    for first in range(0, tensor.num_rows, step):
        cells = buffer[: tensor.num_rows - first]
        read_into(source, bytes_of(cells))
        yield first, cells


def bytes_of(cells: Cells) -> memoryview:
    """The memory of an array, as bytes."""
    return cells.reshape(-1).view(np.uint8).data


def masked_rows(source: BinaryIO, tensor: Stored, spots: Sequence[Spot]) -> Iterator[Cells]:
    """Yield a tensor some rows at a time, with zeros where it is masked; all in one buffer."""
    patch = Patch.of(spots, tensor.num_columns, tensor.format)
    for first, cells in rows_of(source, tensor):
        patch.fill_(cells, first)
        yield cells


def _compared(source: BinaryIO, stretch: Stretch) -> Iterator[tuple[int, Cells, Cells]]:
    """Yield, piece by piece, the place in the stretch, the bytes that were there and those that should be."""
    place = 0
    if stretch.touched is None:
        source.seek(stretch.start)
        while place < stretch.size:
            cells = np.frombuffer(source.read(min(CHUNK, stretch.size - place)), dtype=np.uint8)
            yield place, cells, cells
            place += cells.nbytes
        return
    tensor, spots = stretch.touched
    patch = Patch.of(spots, tensor.num_columns, tensor.format)
    for first, before in rows_of(source, tensor):
        after = before.copy()
        patch.fill_(after, first)
        yield place, before, after
        place += after.nbytes


def _expect(target: Path, made: BinaryIO, expected: Cells, stretch: Stretch, place: int) -> None:
    """Read on in the file that was made, and hold it against what it should be."""
    found = made.read(expected.nbytes)
    if found == bytes_of(expected):
        return
    name = f"tensor {stretch.touched[0].name!r}" if stretch.touched else "what no mask touches"
    raise BakeError(
        f"{target}: differs from what these masks give in {name}, within {expected.nbytes} bytes from byte "
        f"{stretch.start + place} of the source. Bake it again."
    )
