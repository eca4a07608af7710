"""One safetensors file, looked at without loading it: what it holds, where each tensor's bytes lie, some of its values.

The header is checked by safetensors itself (sizes, gaps, overlaps, trailing bytes) before its offsets are used. Nothing
is mapped into memory, so that a file of any size costs what its header costs.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from safeflux.errors import ModelError
from safeflux.maskbytes import unique_keys


@dataclass(frozen=True)
class Stored:
    """One tensor in a file."""

    name: str
    dtype: str
    """As safetensors writes it: BF16, F8_E4M3 and so on."""
    shape: tuple[int, ...]
    start: int
    """Where its bytes begin, counted from the beginning of the file."""
    nbytes: int

    @property
    def num_rows(self) -> int:
        """Size of the first axis; 1 for a single number."""
        return self.shape[0] if self.shape else 1

    @property
    def bytes_per_row(self) -> int:
        """Bytes that each index of the first axis takes."""
        return self.nbytes // self.num_rows if self.nbytes else 0


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file: its tensors in the order of their bytes, and what its header says beside them."""

    path: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]
    data_start: int
    """Size of the header, counted from the beginning of the file."""
    num_bytes: int
    """Size of the file."""

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """Read and check the header.

        Raises:
            ModelError: The file cannot be read, or is no sound safetensors file.
        """
        try:
            with safe_open(path, framework="np"), path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size), object_pairs_hook=unique_keys)
                num_bytes = path.stat().st_size
        except (OSError, SafetensorError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: cannot be read as safetensors ({error}); copy the file again") from error
        metadata = header.pop("__metadata__", None) or {}
        tensors = [_stored(name, entry, 8 + size) for name, entry in header.items()]
        tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
        return cls(path, {tensor.name: tensor for tensor in tensors}, metadata, 8 + size, num_bytes)

    def header_with(self, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]] | None = None) -> bytes:
        """Lay out a header for the same tensors in the same order, with more metadata and, if given, other shapes.

        The bytes are always the same for the same arguments.
        """
        entries: dict[str, Any] = {"__metadata__": dict(sorted({**self.metadata, **metadata}.items()))}
        offset = 0
        for name, tensor in self.tensors.items():
            shape = (shapes or {}).get(name, tensor.shape)
            size = tensor.nbytes // max(1, math.prod(tensor.shape)) * math.prod(shape)
            entries[name] = {"dtype": tensor.dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def _stored(name: str, entry: dict[str, Any], data_start: int) -> Stored:
    start, stop = entry["data_offsets"]
    return Stored(name, entry["dtype"], tuple(entry["shape"]), data_start + start, stop - start)
