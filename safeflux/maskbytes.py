"""The bytes of a mask file: arrays laid out as canonical safetensors. Knows no metadata.

One set of arrays has exactly one layout. What is read is checked before it is used.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from safeflux.errors import MaskFileError
from safeflux.packed import DENSE, SPARSE, Array

MAX_HEADER_BYTES = 1 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"U32": SPARSE, "U8": DENSE}

Header = dict[str, Any]


def serialise(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return the canonical safetensors bytes of arrays and metadata."""
    return b"".join([header_bytes(arrays, metadata), *(arrays[name].tobytes() for name in _ordered(arrays))])


def header_bytes(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Lay out the canonical header: sorted keys, no spaces, ASCII, padded to a multiple of 8 bytes."""
    header: Header = {"__metadata__": dict(metadata)}
    offset = 0
    for name in _ordered(arrays):
        array = arrays[name]
        dtype = "U32" if array.itemsize == 4 else "U8"
        header[name] = {"dtype": dtype, "shape": [array.size], "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def split(data: bytes) -> tuple[Header, memoryview]:
    """Part the bytes of a file into its header and its tensor data.

    Raises:
        MaskFileError: The header is truncated, over-long or not JSON.
    """
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise MaskFileError(f"header: expected at most {MAX_HEADER_BYTES} bytes, got {size}; this is not a mask file")
    if len(data) < 8 + size:
        raise MaskFileError(f"header: truncated, expected at least {8 + size} bytes, got {len(data)}")
    try:
        header = json.loads(data[8 : 8 + size].decode(), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise MaskFileError(f"header: expected JSON, got text that cannot be read ({error})") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
        raise MaskFileError("header: expected an object with '__metadata__', got none; this is not a mask file")
    return header, memoryview(data)[8 + size :]


def read_tensors(header: Header, body: memoryview, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return the array of each site, checked against the site's width but not unpacked.

    Raises:
        MaskFileError: Tensors and widths do not name the same sites, or an entry or the data is not as it must be.
    """
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name in sorted(tensors.keys() ^ shapes.keys()):
        raise MaskFileError(f"tensor {name!r}: {'no width is given for it' if name in tensors else 'missing'}")
    arrays, end = {}, 0
    for name, entry in tensors.items():
        dtype, start, stop = _read_entry(name, entry, math.prod(shapes[name]))
        if stop > len(body):
            raise MaskFileError(f"tensor {name!r}: truncated, expected {stop} bytes of data, got {len(body)}")
        arrays[name] = np.frombuffer(body[start:stop], dtype=dtype)
        end = max(end, stop)
    if end != len(body):
        raise MaskFileError(f"expected {end} bytes of tensor data, got {len(body)}: trailing bytes")
    return arrays


def canonical_json(value: Any) -> str:
    """Return the one JSON text that stands for a value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; a key that comes twice is a ValueError, since readers disagree on which one counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found


def _read_entry(name: str, entry: object, num_bits: int) -> tuple[Any, int, int]:
    """Check one tensor's entry against its width; return its dtype and where its bytes lie."""
    if (
        not isinstance(entry, dict)
        or entry.keys() != {"dtype", "shape", "data_offsets"}
        or entry["dtype"] not in ("U8", "U32")
    ):
        raise MaskFileError(
            f"tensor {name!r}: expected a dtype U8 or U32, a shape and data_offsets, got {reprlib.repr(entry)}"
        )
    dtype, offsets = _DTYPES[entry["dtype"]], entry["data_offsets"]
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets)):
        raise MaskFileError(f"tensor {name!r}: expected two data offsets, got {reprlib.repr(offsets)}")
    start, stop = offsets
    size = (stop - start) // dtype.itemsize
    if not 0 <= start <= stop or (stop - start) % dtype.itemsize or entry["shape"] != [size]:
        shape = reprlib.repr(entry["shape"])
        raise MaskFileError(f"tensor {name!r}: shape {shape} and data offsets {offsets} disagree")
    if entry["dtype"] == "U8" and size != -(-num_bits // 8):
        raise MaskFileError(f"tensor {name!r}: expected {-(-num_bits // 8)} bytes for {num_bits} bits, got {size}")
    return dtype, start, stop


def _ordered(arrays: Mapping[str, Array]) -> list[str]:
    """Order of the tensors in a file: 32-bit ones first, so that all are aligned, then by name."""
    return sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
