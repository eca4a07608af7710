"""The bytes of a mask file, format 1: a mask set and its metadata as canonical safetensors (`docs/mask-format.md`).

A mask set and its metadata have exactly one encoding, and the reader accepts no other. Does not touch the disk.
"""

import hashlib
import math
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from safeflux.disk.canonical import canonical_json, parse_json
from safeflux.errors import MaskFileError, MaskMismatchError
from safeflux.families.sites import num_axes
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import FORMAT, MaskMeta
from safeflux.masks.packed import DENSE, MAX_BITS, SPARSE, Array, PackedMask

MAX_HEADER_BYTES = 1 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"U32": SPARSE, "U8": DENSE}
_JSON_KEYS = ("concepts", "evaluation", "widths")
_KEYS = frozenset({"format", "widths", *(f.name for f in fields(MaskMeta))})

Header = dict[str, Any]


def encode(masks: MaskSet, meta: MaskMeta) -> bytes:
    """Return the canonical bytes of a mask file.

    Raises:
        MaskFileError: The mask set is empty, or too large for the format.
    """
    if not masks:
        raise MaskFileError("a mask file needs at least one site, got an empty mask set")
    data = serialise(masks.arrays, _metadata(meta, masks.shapes))
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise MaskFileError(f"the header would be over {MAX_HEADER_BYTES} bytes; make the metadata shorter")
    return data


def decode(data: bytes, where: str) -> tuple[MaskSet, MaskMeta]:
    """Decode the bytes of a mask file; `where` names them in messages.

    Raises:
        MaskFileError: The bytes are not exactly what `encode` returns; the message names the tensor or key.
    """
    try:
        header, body = split(data)
        meta, shapes = _read_metadata(header)
        arrays = read_tensors(header, body, shapes)
        masks = MaskSet({name: PackedMask.read(name, arrays[name], shape) for name, shape in shapes.items()})
        _check_canonical(data, arrays, meta, shapes)
    except (MaskFileError, MaskMismatchError) as error:
        raise MaskFileError(f"{where}: {error}") from error
    return masks, meta


def decode_meta(data: bytes, where: str) -> MaskMeta:
    """Decode the metadata only, which is cheap: to choose between files before their masks are unpacked.

    Raises:
        MaskFileError: The header is not that of a mask file; the message names the key.
    """
    try:
        return _read_metadata(split(data)[0])[0]
    except MaskFileError as error:
        raise MaskFileError(f"{where}: {error}") from error


def digest(masks: MaskSet) -> str:
    """Return the sha256 of the bits, without the metadata: equal for equal mask sets, and only for them."""
    return hashlib.sha256(serialise(masks.arrays, {"widths": canonical_json(masks.shapes)})).hexdigest()


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
    """Split the bytes of a file into its header and its tensor data.

    Raises:
        MaskFileError: The header is truncated, too long or not JSON.
    """
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise MaskFileError(f"header: expected at most {MAX_HEADER_BYTES} bytes, got {size}; this is not a mask file")
    if len(data) < 8 + size:
        raise MaskFileError(f"header: truncated, expected at least {8 + size} bytes, got {len(data)}")
    try:
        header = parse_json(data[8 : 8 + size])
    except ValueError as error:
        raise MaskFileError(f"header: expected JSON, got something else ({error})") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
        raise MaskFileError("header: expected an object with '__metadata__', got none; this is not a mask file")
    return header, memoryview(data)[8 + size :]


def check_size(head: bytes, num_bytes: int) -> None:
    """Check the start of a file: it must be a mask file whose header agrees with the file's size.

    Raises:
        MaskFileError: The header is not that of a mask file, or gives another size.
    """
    header, _ = split(head)
    shapes = _read_metadata(header)[1]
    data_start = 8 + int.from_bytes(head[:8], "little")
    most = data_start + sum(-(-math.prod(shape) // 8) for shape in shapes.values())
    if num_bytes > most:
        raise MaskFileError(f"expected at most {most} bytes for its sites, got {num_bytes}: trailing bytes")


def read_tensors(header: Header, body: memoryview, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return the array of each site, checked against the site's width but not unpacked.

    Raises:
        MaskFileError: Tensors and widths do not name the same sites, or an entry or the data is not valid.
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


def _read_entry(name: str, entry: object, num_bits: int) -> tuple[Any, int, int]:
    """Check one tensor's entry against its width; return its dtype and byte range."""
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


def _metadata(meta: MaskMeta, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    values = {f.name: getattr(meta, f.name) for f in fields(meta)} | {"format": FORMAT, "widths": dict(shapes)}
    return values | {key: canonical_json(values[key]) for key in _JSON_KEYS}


def _read_metadata(header: Header) -> tuple[MaskMeta, dict[str, tuple[int, ...]]]:
    metadata = header["__metadata__"]
    _check_format(metadata.get("format"))
    for key in sorted(metadata.keys() ^ _KEYS):
        raise MaskFileError(f"metadata key {key!r}: {'unknown' if key in metadata else 'missing'}")
    values = {key: _parse(key, text) if key in _JSON_KEYS else text for key, text in metadata.items()}
    del values["format"]
    shapes = _read_widths(values.pop("widths"))
    if not isinstance(values["concepts"], list):
        raise MaskFileError("metadata key 'concepts': expected a JSON list")
    return MaskMeta(**values | {"concepts": tuple(values["concepts"])}), shapes


def _check_format(version: object) -> None:
    if version == FORMAT:
        return
    if isinstance(version, str) and version.startswith("safeflux-mask/"):
        raise MaskFileError(
            f"metadata key 'format': expected {FORMAT!r}, got {reprlib.repr(version)}; a newer safeflux may read it"
        )
    raise MaskFileError(
        f"metadata key 'format': expected {FORMAT!r}, got {reprlib.repr(version)}; this is not a mask file"
    )


def _parse(key: str, text: object) -> Any:
    try:
        if not isinstance(text, str):
            raise ValueError("not a string")
        return parse_json(text)
    except ValueError as error:
        raise MaskFileError(f"metadata key {key!r}: expected JSON in a string, got something else ({error})") from error


def _read_widths(widths: object) -> dict[str, tuple[int, ...]]:
    if not isinstance(widths, dict) or not widths:
        raise MaskFileError("metadata key 'widths': expected an object with at least one site")
    total = 0
    for name, shape in widths.items():
        sound = isinstance(shape, list) and shape and all(type(n) is int and 0 < n <= MAX_BITS for n in shape)
        if not sound or len(shape) != num_axes(name):
            raise MaskFileError(
                f"metadata key 'widths', site {name!r}: expected [neurons] or [rows, columns], "
                f"got {reprlib.repr(shape)}"
            )
        total += math.prod(shape)
        if total > MAX_BITS:
            raise MaskFileError(f"metadata key 'widths', site {name!r}: more than {MAX_BITS} bits so far")
    return {name: tuple(shape) for name, shape in widths.items()}


def _check_canonical(
    data: bytes, arrays: Mapping[str, Array], meta: MaskMeta, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse the same content in other bytes (order, spaces, gaps): its digest would be a different one."""
    header = header_bytes(arrays, _metadata(meta, shapes))
    if data[: len(header)] != header:
        raise MaskFileError("header: not in canonical form; expected exactly the bytes that save_masks writes")
