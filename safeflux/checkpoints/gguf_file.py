"""One GGUF file, inspected without loading it, as `tensor_file` does for safetensors. Needs the extra `gguf`.

The header is parsed here, since the package `gguf` trusts its counts: a damaged one can keep it busy for ever. The
package provides the number types: their sizes and the content of their blocks. In all of them a block of zero bytes
holds zeros; `zero_codes` finds out in which of them a single number can be zero.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from safeflux.checkpoints.hints import unreadable
from safeflux.checkpoints.number_formats import FORMATS, Format
from safeflux.checkpoints.tensor_file import Stored, WeightFile
from safeflux.disk.reading import open_regular
from safeflux.errors import ConfigError, ModelError

MISSING = "GGUF files need the package gguf; get it with: pip install 'safeflux[gguf]'"
try:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize
except ImportError as error:
    raise ConfigError(MISSING) from error

_MAX_HEADER = 1 << 24
"""Bytes; the header of a FLUX model takes a hundredth."""
_MAX_AXES = 4
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a metadata value, by the number of its type: integers, floats and booleans."""
_UINT32, _TEXT, _ARRAY = 4, 8, 9


@dataclass(frozen=True)
class GgufFile(WeightFile):
    """A GGUF file. Metadata values that are not strings appear as empty strings."""

    parts: tuple[bytes, bytes, bytes]
    """The raw header: up to the number of metadata entries, the entries, and the tensors."""
    alignment: int

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Read and check the header.

        Raises:
            ModelError: The file cannot be read, is not a valid GGUF file, or has an unknown number type.
        """
        try:
            with open_regular(path) as file:
                header = _Header(file.read(_MAX_HEADER))
            return cls._read(path, header, path.stat().st_size)
        except (OSError, ValueError) as error:
            raise unreadable(path, "GGUF", error) from error

    @classmethod
    def _read(cls, path: Path, header: "_Header", num_bytes: int) -> "GgufFile":
        num_tensors = header.start()
        begin = header.place
        metadata, alignment = _metadata(header)
        middle = header.place
        entries = [_tensor(header) for _ in range(num_tensors)]
        end = header.place
        header.take(-end % alignment)
        tensors = [_stored(path, header.place, *entry) for entry in entries]
        tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
        _check_places(tensors, alignment, header.place, num_bytes)
        parts = header.data[:begin], header.data[begin + 8 : middle], header.data[middle:end]
        return cls(path, {each.name: each for each in tensors}, metadata, header.place, num_bytes, parts, alignment)

    def header_with(self, metadata: Mapping[str, str]) -> bytes:
        """See `tensor_file.WeightFile`: the new entries follow the old ones, which stay byte for byte."""
        start, entries, tensors = self.parts
        added = b"".join(_text(key) + _TEXT.to_bytes(4, "little") + _text(metadata[key]) for key in sorted(metadata))
        count = (len(self.metadata) + len(metadata)).to_bytes(8, "little")
        header = b"".join([start, count, entries, added, tensors])
        return header + bytes(-len(header) % self.alignment)


@dataclass
class _Header:
    """The first bytes of a file, and the current position. Invalid content is a `ValueError`."""

    data: bytes
    place: int = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > len(self.data) - self.place:
            raise ValueError(f"its header does not end within {len(self.data)} bytes")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, size: int = 8) -> int:
        """Return the next integer, unsigned."""
        return int.from_bytes(self.take(size), "little")

    def text(self) -> bytes:
        """Return the next string, which is stored after its size."""
        return self.take(self.number())

    def start(self) -> int:
        """Return the number of tensors."""
        if self.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        if (version := self.number(4)) not in (2, 3):
            raise ValueError(f"expected version 2 or 3, got {version}")
        return self.number()


def _metadata(header: _Header) -> tuple[dict[str, str], int]:
    """Read all entries; return them, and the alignment of the data."""
    found: dict[str, str] = {}
    alignment = 32
    for _ in range(header.number()):
        key, kind = header.text().decode(), header.number(4)
        if key in found:
            raise ValueError(f"metadata key {key!r} appears twice")
        value = _value(header, kind)
        found[key] = value.decode(errors="replace") if kind == _TEXT else ""
        if key == "general.alignment":
            alignment = int.from_bytes(value, "little")
            if kind != _UINT32 or alignment.bit_count() != 1:
                raise ValueError(f"{key}: expected a power of two, got {value!r} of type {kind}")
    return found, alignment


def _value(header: _Header, kind: int) -> bytes:
    """Read a metadata value; return its bytes, without its size."""
    if kind == _TEXT:
        return header.text()
    if kind == _ARRAY:
        kind, count = header.number(4), header.number()
        if kind == _TEXT:
            return b"".join(header.text() for _ in range(count))
        return header.take(count * _size(kind))
    return header.take(_size(kind))


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise ValueError(f"metadata of an unknown type {kind}")
    return _SIZES[kind]


def _tensor(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    """Read a tensor's name, shape, the number of its type, and its offset in the data."""
    name, num_axes = header.text().decode(), header.number(4)
    if num_axes > _MAX_AXES:
        raise ValueError(f"tensor {name!r}: expected at most {_MAX_AXES} axes, got {num_axes}")
    shape = [header.number() for _ in range(num_axes)]
    return name, tuple(reversed(shape)), header.number(4), header.number()


def _stored(path: Path, data_start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Stored:
    """Lay out a tensor; its rows must be whole blocks."""
    try:
        known = GGMLQuantizationType(kind)
    except ValueError as error:
        raise ModelError(
            f"{path}: tensor {name!r}: the package gguf does not know its type {kind}; update the package, or bake the "
            "model before it is quantised"
        ) from error
    block, nbytes = GGML_QUANT_SIZES[known]
    if (shape[-1] if shape else 1) % block:
        raise ValueError(
            f"tensor {name!r}: rows of shape {shape} are not whole blocks of {block}, as {known.name} needs"
        )
    # several numbers of a packed vector share a block, so that it has no rows that could be zeroed
    format = _format(known) if block == 1 or len(shape) > 1 else None
    return Stored(name, known.name, shape, data_start + offset, math.prod(shape) * nbytes // block, format)


def _check_places(tensors: Sequence[Stored], alignment: int, data_start: int, num_bytes: int) -> None:
    """Check that tensors, in the order of their bytes, share neither bytes nor names and are inside the file."""
    for one in tensors:
        if (one.start - data_start) % alignment:
            raise ValueError(f"tensor {one.name!r} does not begin at a multiple of {alignment} bytes")
        if one.start + one.nbytes > num_bytes:
            raise ValueError(f"tensor {one.name!r} ends at byte {one.start + one.nbytes} of {num_bytes}")
    for one, other in pairwise(tensors):
        if one.start + one.nbytes > other.start:
            raise ValueError(f"tensors {one.name!r} and {other.name!r} overlap")
    if len({one.name for one in tensors}) < len(tensors):
        raise ValueError("two tensors have the same name")


@cache
def _format(kind: GGMLQuantizationType) -> Format | None:
    """The format of a number type; None if the package cannot read it."""
    if kind.name in FORMATS:
        return FORMATS[kind.name]
    block, nbytes = GGML_QUANT_SIZES[kind]

    def read(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.asarray(dequantize(data.reshape(1, -1), kind)).reshape(-1)  # of rows it takes 16 at a time

    try:
        read(np.zeros(nbytes, np.uint8))
    except NotImplementedError:  # the package knows the sizes of more types than it can read
        return None
    return Format(nbytes, 1, read, block, f"-q{_bits(kind.name)}")


def format_named(name: str) -> Format | None:
    """Return the format of the number type of this name, such as `Q8_0`; None if the package cannot read it."""
    return _format(GGMLQuantizationType[name]) if name in GGMLQuantizationType.__members__ else None


def _bits(name: str) -> int:
    """Bits per number, by the name of the type: 4 for Q4_K and IQ4_XS."""
    digit = re.search(r"\d", name)
    assert digit, name
    return int(digit[0])


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(8, "little") + data
