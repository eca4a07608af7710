"""One safetensors file, inspected without loading it, and the interface of files with named tensors.

safetensors itself checks the header (sizes, gaps, overlaps, trailing bytes) before its offsets are used. Nothing is
mapped into memory, so opening a file of any size only costs reading its header.
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
"""Bytes of a masked tensor in memory at a time: few, so that they stay in the CPU cache."""

Rows = Iterator[tuple[int, npt.NDArray[Any]]]
"""The index of a row, and an array with it and some of the next rows, zero exactly where the tensor is zero."""


@dataclass(frozen=True)
class Stored:
    """One tensor in a file."""

    name: str
    dtype: str
    """The name of its type in the file's format: BF16, F8_E4M3, Q8_0 and so on."""
    shape: tuple[int, ...]
    start: int
    """Offset of its bytes from the beginning of the file."""
    nbytes: int
    known: Format | None
    """Its number format; None if it is not known here."""

    @property
    def format(self) -> Format:
        """Its number format.

        Raises:
            ModelError: The numbers are packed in an unknown way, or are not floats.
        """
        if self.known is None:
            raise ModelError(
                f"tensor {self.name!r}: expected float weights, got {self.dtype}: packed by a quantiser. Bake the "
                "model before it is quantised, then quantise the baked model."
            )
        return self.known

    @property
    def num_rows(self) -> int:
        """Size of the first axis; 1 for a single number."""
        return self.shape[0] if self.shape else 1

    @property
    def num_columns(self) -> int:
        """Numbers per index of the first axis."""
        return math.prod(self.shape[1:])

    @property
    def bytes_per_row(self) -> int:
        """Bytes per index of the first axis."""
        return self.nbytes // self.num_rows if self.nbytes else 0


@dataclass(frozen=True)
class WeightFile(ABC):
    """A file of named tensors in any format, known by its header."""

    path: Path
    tensors: Mapping[str, Stored]
    """In the order of their bytes."""
    metadata: Mapping[str, str]
    """The other entries of the header."""
    data_start: int
    """Size of the header: the offset of the tensor data."""
    num_bytes: int
    """Size of the file."""

    @abstractmethod
    def header_with(self, metadata: Mapping[str, str]) -> bytes:
        """Return a header for the same tensors with more metadata; deterministic."""


@dataclass(frozen=True)
class TensorFile(WeightFile):
    """A safetensors file."""

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """Read and check the header.

        Raises:
            ModelError: The file cannot be read, or is not a valid safetensors file.
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
        # transformers refuses a header that has metadata but not the key `format`
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
    """Return the layout of a safetensors file after some of its tensors changed shape; nothing is written.

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
    """Yield a tensor some rows at a time: the index of the first, and the rows as integers in a reused buffer."""
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
