"""Writes, or compares, a tensor file with zeros at masked places, or without masked neurons, in small pieces.

Only a few megabytes are in memory, whatever the size of the file. The system copies bytes that no mask changes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from safeflux.baking.patch import Patch, between
from safeflux.checkpoints.number_formats import Cells
from safeflux.checkpoints.tensor_file import Stored, WeightFile, bytes_of, rows_of
from safeflux.disk.copying import CHUNK, Advance, copy_range, write_all
from safeflux.errors import BakeError
from safeflux.masks.cuts import Kept
from safeflux.masks.spots import Spot


@dataclass(frozen=True)
class Change:
    """The change of one tensor: places are filled with zeros, then rows or columns are removed, if any are."""

    spots: Sequence[Spot]
    kept: Kept


@dataclass(frozen=True)
class Stretch:
    """A range of bytes in a file: a tensor that masks change, or everything up to the next of those."""

    start: int
    size: int
    touched: tuple[Stored, Change] | None = None


def write_masked(
    file: WeightFile, changes: Mapping[str, Change], header: bytes, target: Path, advance: Advance
) -> None:
    """Write a file with another header and changed tensors.

    Args:
        file: The source.
        changes: The changes, by the name of the tensor in the file.
        header: The bytes before the tensors.
        target: The path to write to.
        advance: Called with the number of bytes done.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    with file.path.open("rb", buffering=0) as source, target.open("wb", buffering=0) as out:
        write_all(out, memoryview(header))
        for stretch in stretches(file, changes):
            if stretch.touched is None:
                copy_range(source, out, stretch.start, stretch.size, advance)
                continue
            tensor, change = stretch.touched
            edit_ = _editor(tensor, change)
            for first, cells in rows_of(source, tensor):
                write_all(out, bytes_of(edit_(cells, first)))
                advance(cells.nbytes)


def check_masked(file: WeightFile, changes: Mapping[str, Change], header: bytes, target: Path, advance: Advance) -> int:
    """Check that a file is what `write_masked` would write, byte for byte; return the number of changed bytes.

    Removed bytes count as changed.

    Raises:
        BakeError: It is not; the message names the first difference.
    """
    changed = 0
    with file.path.open("rb", buffering=0) as source, target.open("rb", buffering=0) as made:
        if made.read(len(header)) != header:
            raise BakeError(
                f"{target}: its header does not match these masks; it may be baked with others: bake it again"
            )
        for stretch in stretches(file, changes):
            place = stretch.start
            for before, after in _expected(source, stretch):
                _expect(target, made, after, stretch, place)
                changed += _num_changed(before, after)
                place += before.nbytes
                advance(before.nbytes)
        if made.read(1):
            raise BakeError(f"{target}: bytes follow after the last tensor; bake it again")
    return changed


def is_made(path: Path, made: Stored, source: Path, tensor: Stored, change: Change) -> bool:
    """Return whether a tensor in one file is the changed tensor of another, byte for byte.

    Args:
        path: The file to check.
        made: The tensor in it, in the type and shape after the change.
        source: The other file.
        tensor: The tensor in the other file.
        change: Its change.
    """
    with path.open("rb", buffering=0) as found, source.open("rb", buffering=0) as whole:
        found.seek(made.start)
        pieces = _expected(whole, Stretch(tensor.start, tensor.nbytes, (tensor, change)))
        return all(found.read(after.nbytes) == bytes_of(after) for _, after in pieces)


def stretches(file: WeightFile, changes: Mapping[str, Change]) -> Iterator[Stretch]:
    """Split the data of a file into ranges that masks change and ranges that they do not, in file order."""
    done = file.data_start
    for name, tensor in file.tensors.items():
        if name in changes:
            if tensor.start > done:
                yield Stretch(done, tensor.start - done)
            yield Stretch(tensor.start, tensor.nbytes, (tensor, changes[name]))
            done = tensor.start + tensor.nbytes
    if file.num_bytes > done:
        yield Stretch(done, file.num_bytes - done)


def _editor(tensor: Stored, change: Change) -> Callable[[Cells, int], Cells]:
    """A function that fills masked places in some rows of a tensor in place, and returns the rows that are kept."""
    patch, kept = Patch.of(change.spots, tensor.num_columns, tensor.format), change.kept

    def edit_(cells: Cells, first: int) -> Cells:
        patch.fill_(cells, first)
        if kept.rows is not None:
            cells = cells[between(kept.rows, first, len(cells))]
        return cells if kept.columns is None else np.ascontiguousarray(cells[:, kept.columns])

    return edit_


def _expected(source: FileIO, stretch: Stretch) -> Iterator[tuple[Cells, Cells]]:
    """Yield, piece by piece, the old and the expected content."""
    if stretch.touched is not None:
        tensor, change = stretch.touched
        edit_ = _editor(tensor, change)
        for first, before in rows_of(source, tensor):
            yield before, edit_(before.copy(), first)
        return
    source.seek(stretch.start)
    for start in range(0, stretch.size, CHUNK):
        cells = np.frombuffer(source.read(min(CHUNK, stretch.size - start)), dtype=np.uint8)
        yield cells, cells


def _num_changed(before: Cells, after: Cells) -> int:
    """The number of bytes that differ or were removed."""
    if before.shape != after.shape:
        return before.nbytes - after.nbytes
    return int(np.count_nonzero(before.view(np.uint8) != after.view(np.uint8)))


def _expect(target: Path, made: FileIO, expected: Cells, stretch: Stretch, place: int) -> None:
    """Read the next bytes of the new file, and compare them with the expected ones."""
    found = made.read(expected.nbytes)
    if found == bytes_of(expected):
        return
    name = f"tensor {stretch.touched[0].name!r}" if stretch.touched else "bytes that no mask changes"
    raise BakeError(
        f"{target}: differs from the result of these masks in {name}, within {expected.nbytes} bytes from byte {place} "
        "of the source. Bake it again."
    )
