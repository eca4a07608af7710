"""A tensor file with zeros where masks say so, or without what they mask, made or compared some megabytes at a time.

Whatever the size of a file, a few megabytes of it are held. Bytes that no mask touches are copied by the system.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from safeflux.baking.patch import Patch, between
from safeflux.checkpoints.number_formats import Cells
from safeflux.checkpoints.tensor_file import Stored, WeightFile, bytes_of, rows_of
from safeflux.disk.copying import CHUNK, Tell, copy_range, write_all
from safeflux.errors import BakeError
from safeflux.masks.cuts import Kept
from safeflux.masks.spots import Spot


@dataclass(frozen=True)
class Change:
    """What is done to one tensor: places are filled with zeros; then rows or columns are cut out, if any are."""

    spots: Sequence[Spot]
    kept: Kept


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file that lie side by side: a tensor that masks touch, or all up to the next of those."""

    start: int
    size: int
    touched: tuple[Stored, Change] | None = None


def write_masked(file: WeightFile, changes: Mapping[str, Change], header: bytes, target: Path, tell: Tell) -> None:
    """Write a file with another header and changed tensors.

    Args:
        file: The source.
        changes: What is masked, by the name of the tensor in the file.
        header: What comes before the tensors.
        target: The path to write to.
        tell: Called with the number of bytes done.

    Raises:
        OSError: The disk is full, or something like it.
    """
    with file.path.open("rb", buffering=0) as source, target.open("wb", buffering=0) as out:
        write_all(out, memoryview(header))
        for stretch in stretches(file, changes):
            if stretch.touched is None:
                copy_range(source, out, stretch.start, stretch.size, tell)
                continue
            tensor, change = stretch.touched
            edit_ = _editor(tensor, change)
            for first, cells in rows_of(source, tensor):
                write_all(out, bytes_of(edit_(cells, first)))
                tell(cells.nbytes)


def check_masked(file: WeightFile, changes: Mapping[str, Change], header: bytes, target: Path, tell: Tell) -> int:
    """Make sure that a file is what `write_masked` would write, byte for byte; return how many bytes masks changed.

    Bytes that were cut out count as changed.

    Raises:
        BakeError: It is not; the message says where it differs first.
    """
    changed = 0
    with file.path.open("rb", buffering=0) as source, target.open("rb", buffering=0) as made:
        if made.read(len(header)) != header:
            raise BakeError(f"{target}: its header is not what these masks give; was it baked by other masks?")
        for stretch in stretches(file, changes):
            place = stretch.start
            for before, after in _expected(source, stretch):
                _expect(target, made, after, stretch, place)
                changed += _num_changed(before, after)
                place += before.nbytes
                tell(before.nbytes)
        if made.read(1):
            raise BakeError(f"{target}: bytes follow after the last tensor")
    return changed


def is_made(path: Path, made: Stored, source: Path, tensor: Stored, change: Change) -> bool:
    """Say whether a tensor in one file is what a change makes of a tensor in another, byte for byte.

    Args:
        path: The file to look at.
        made: The tensor in it, in the type and shape that the change leaves.
        source: The other file.
        tensor: The tensor in that.
        change: What is done to it.
    """
    with path.open("rb", buffering=0) as found, source.open("rb", buffering=0) as whole:
        found.seek(made.start)
        pieces = _expected(whole, Stretch(tensor.start, tensor.nbytes, (tensor, change)))
        return all(found.read(after.nbytes) == bytes_of(after) for _, after in pieces)


def stretches(file: WeightFile, changes: Mapping[str, Change]) -> Iterator[Stretch]:
    """Cut the data of a file into what masks touch and what they do not, in its order."""
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
    """What fills masked places in some rows of a tensor, in place, and returns what stays of the rows."""
    patch, kept = Patch.of(change.spots, tensor.num_columns, tensor.format), change.kept

    def edit_(cells: Cells, first: int) -> Cells:
        patch.fill_(cells, first)
        if kept.rows is not None:
            cells = cells[between(kept.rows, first, len(cells))]
        return cells if kept.columns is None else np.ascontiguousarray(cells[:, kept.columns])

    return edit_


def _expected(source: FileIO, stretch: Stretch) -> Iterator[tuple[Cells, Cells]]:
    """Yield, piece by piece, what was there and what should be."""
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
    """Bytes that differ, or that are gone."""
    if before.shape != after.shape:
        return before.nbytes - after.nbytes
    return int(np.count_nonzero(before.view(np.uint8) != after.view(np.uint8)))


def _expect(target: Path, made: FileIO, expected: Cells, stretch: Stretch, place: int) -> None:
    """Read on in the file that was made, and hold it against what it should be."""
    found = made.read(expected.nbytes)
    if found == bytes_of(expected):
        return
    name = f"tensor {stretch.touched[0].name!r}" if stretch.touched else "what no mask touches"
    raise BakeError(
        f"{target}: differs from what these masks give in {name}, within {expected.nbytes} bytes from byte {place} of "
        "the source. Bake it again."
    )
