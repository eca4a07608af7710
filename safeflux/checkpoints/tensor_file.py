"""One safetensors file, looked at without loading it: what it holds, where the bytes lie; and what any such file shows.

The header is checked by safetensors itself (sizes, gaps, overlaps, trailing bytes) before its offsets are used. Nothing
is mapped into memory, so that a file of any size costs what its header costs.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from safeflux.checkpoints.hints import unreadable
from safeflux.checkpoints.number_formats import FORMATS, Cells, Format
from safeflux.disk.canonical import parse_mapping
from safeflux.disk.copying import read_into
from safeflux.disk.reading import open_regular
from safeflux.errors import ModelError

_HELD = 1 << 18
"""Bytes of a masked tensor that are held at a time: few, so that they stay in a core's cache."""

Rows = Iterator[tuple[int, npt.NDArray[Any]]]
"""The number of a tensor's row, and an array with it and some of the next, zero where a number is zero."""


@dataclass(frozen=True)
class Stored:
    """One tensor in a file."""

    name: str
    dtype: str
    """As the file's format calls it: BF16, F8_E4M3, Q8_0 and so on."""
    shape: tuple[int, ...]
    start: int
    """Where its bytes begin, counted from the beginning of the file."""
    nbytes: int
    known: Format | None
    """How its numbers lie; None if that is not known here."""

    @property
    def format(self) -> Format:
        """How its numbers lie.

        Raises:
            ModelError: They are packed in a way that is not known here, or are no floats.
        """
        if self.known is None:
            raise ModelError(
                f"tensor {self.name!r}: expected float weights, got {self.dtype}: packed by a quantiser. Bake the "
                "model before it is quantised, then quantise what was baked."
            )
        return self.known

    @property
    def num_rows(self) -> int:
        """Size of the first axis; 1 for a single number."""
        return self.shape[0] if self.shape else 1

    @property
    def num_columns(self) -> int:
        """Numbers that each index of the first axis has."""
        return math.prod(self.shape[1:])

    @property
    def bytes_per_row(self) -> int:
        """Bytes that each index of the first axis takes."""
        return self.nbytes // self.num_rows if self.nbytes else 0


@dataclass(frozen=True)
class WeightFile(ABC):
    """A file of tensors, in whatever format, seen by its header."""

    path: Path
    tensors: Mapping[str, Stored]
    """In the order of their bytes."""
    metadata: Mapping[str, str]
    """What the header says beside them."""
    data_start: int
    """Size of the header, counted from the beginning of the file."""
    num_bytes: int
    """Size of the file."""

    @abstractmethod
    def header_with(self, metadata: Mapping[str, str]) -> bytes:
        """Lay out a header for the same tensors with more metadata; always the same for the same arguments."""


@dataclass(frozen=True)
class TensorFile(WeightFile):
    """A safetensors file."""

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """Read and check the header.

        Raises:
            ModelError: The file cannot be read, or is no sound safetensors file.
        """
        try:
            with open_regular(path) as file, safe_open(path, framework="np"):
                size = int.from_bytes(file.read(8), "little")
                header = parse_mapping(file.read(size))
                num_bytes = path.stat().st_size
        except (OSError, SafetensorError, ValueError) as error:
            raise unreadable(path, "safetensors", error) from error
        metadata = header.pop("__metadata__", None) or {}
        tensors = [_stored(name, entry, 8 + size) for name, entry in header.items()]
        tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
        return cls(path, {tensor.name: tensor for tensor in tensors}, metadata, 8 + size, num_bytes)

    def header_with(self, metadata: Mapping[str, str]) -> bytes:
        """See `WeightFile`."""
        # transformers takes a header with metadata but without the key `format` for no file of torch
        texts = {"format": "pt", **self.metadata, **metadata}
        entries: dict[str, Any] = {"__metadata__": dict(sorted(texts.items()))}
        for name, tensor in self.tensors.items():
            start = tensor.start - self.data_start
            entries[name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [start, start + tensor.nbytes],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def resized(file: WeightFile, shapes: Mapping[str, tuple[int, ...]]) -> TensorFile:
    """Return what a safetensors file is to be once some of its tensors have other shapes; nothing is written.

    Raises:
        ModelError: One of these tensors is packed.
    """
    tensors, start = {}, 0
    for name, tensor in file.tensors.items():
        shape, size = tensor.shape, tensor.nbytes
        if name in shapes:
            shape = shapes[name]
            size = math.prod(shape) * tensor.format.nbytes
        tensors[name] = replace(tensor, shape=shape, start=start, nbytes=size)
        start += size
    return TensorFile(file.path, tensors, file.metadata, 0, start)


def rows_of(source: FileIO, tensor: Stored) -> Iterator[tuple[int, Cells]]:
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


def _stored(name: str, entry: dict[str, Any], data_start: int) -> Stored:
    start, stop = entry["data_offsets"]
    dtype = entry["dtype"]
    return Stored(name, dtype, tuple(entry["shape"]), data_start + start, stop - start, FORMATS.get(dtype))
