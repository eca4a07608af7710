"""Mask files, format 1: a mask set and what is known of it, as canonical safetensors. Defined in `docs/mask-format.md`.

A mask set with its metadata has exactly one encoding, and the reader takes nothing else: bytes are read once, and those
bytes are checked, hashed and decoded. Nothing in a file is executed.
"""

import hashlib
import json
import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from safeflux import __version__
from safeflux.atomic import write_atomically
from safeflux.errors import MaskFileError, MaskMismatchError
from safeflux.maskbytes import (
    MAX_HEADER_BYTES,
    Header,
    canonical_json,
    header_bytes,
    read_tensors,
    serialise,
    split,
    unique_keys,
)
from safeflux.masks import MaskSet
from safeflux.packed import MAX_BITS, Array, PackedMask

FORMAT = "safeflux-mask/1"
_JSON_KEYS = ("concepts", "evaluation", "widths")


@dataclass(frozen=True)
class MaskMeta:
    """What a mask file says about its masks; every field is required in the file, and none may be added."""

    category: str
    """What the mask erases, as policies name it."""
    concepts: tuple[str, ...]
    """The concepts that it was trained on."""
    base_model: str
    """Id of the base model that it was trained for."""
    family: str
    """The model family, which fixes what site names mean."""
    fingerprint: str
    """Fingerprint of the base weights; see `safeflux.fingerprint`."""
    method: str
    """How the mask was made."""
    config_sha256: str
    """Digest of the training configuration: 64 lower-case hexadecimal digits. Of a file that was imported or composed:
    of its sources' digests, sorted, one a line."""
    licence: str
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """Figures with their seeds and settings; anything that JSON can hold."""
    tool_version: str = __version__

    def __post_init__(self) -> None:
        """Refuse what the reader would refuse, so that no bad file is ever written."""
        for key in ("category", "base_model", "family", "fingerprint", "method", "licence", "tool_version"):
            value = getattr(self, key)
            if not isinstance(value, str) or not value.strip():
                raise MaskFileError(f"metadata key {key!r}: expected a non-empty text, got {value!r}")
        if not (isinstance(self.config_sha256, str) and _is_sha256(self.config_sha256)):
            raise MaskFileError(
                f"metadata key 'config_sha256': expected 64 hexadecimal digits, got {self.config_sha256!r}"
            )
        concepts = self.concepts
        if not isinstance(concepts, tuple) or not concepts or not all(isinstance(c, str) and c for c in concepts):
            raise MaskFileError(f"metadata key 'concepts': expected a tuple of at least one text, got {concepts!r}")
        if not isinstance(self.evaluation, Mapping):
            raise MaskFileError(f"metadata key 'evaluation': expected a mapping, got {self.evaluation!r}")
        try:
            object.__setattr__(self, "evaluation", json.loads(canonical_json(dict(self.evaluation))))
        except (TypeError, ValueError) as error:
            raise MaskFileError(f"metadata key 'evaluation': expected what JSON can hold ({error})") from error


_KEYS = frozenset({"format", "widths", *(f.name for f in fields(MaskMeta))})


def save_masks(path: str | os.PathLike[str], masks: MaskSet, meta: MaskMeta) -> str:
    """Write a mask file, whole or not at all, and return the sha256 of its bytes.

    The same masks and metadata give the same bytes, on every machine. The file takes its name only once all bytes are
    on disk.

    Raises:
        MaskFileError: The mask set is empty or too large for the format, or the file cannot be written.
    """
    data = encode(masks, meta)
    try:
        write_atomically(Path(path), data)
    except OSError as error:
        raise MaskFileError(
            f"{os.fspath(path)}: cannot be written ({error.strerror}); nothing was left behind"
        ) from error
    return hashlib.sha256(data).hexdigest()


def load_masks(path: str | os.PathLike[str]) -> tuple[MaskSet, MaskMeta]:
    """Read a mask file, strictly.

    Law: `load_masks(p)` after `save_masks(p, masks, meta)` equals `(masks, meta)`.

    Raises:
        MaskFileError: The file is not readable, or is not exactly what `save_masks` writes; the message names the
            tensor or key.
    """
    return decode(read_bytes(path), os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a file once, so that what is hashed is what is decoded.

    Raises:
        MaskFileError: The file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MaskFileError(f"{os.fspath(path)}: cannot be read ({error.strerror}); expected a mask file") from error


def digest(masks: MaskSet) -> str:
    """Return the sha256 of the bits alone, whatever the metadata: equal for equal mask sets, and only for them."""
    return hashlib.sha256(serialise(masks.arrays, {"widths": canonical_json(masks.shapes)})).hexdigest()


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
    """Decode the metadata only, which costs nothing: to choose among files before their masks are unpacked.

    Raises:
        MaskFileError: The header is not that of a mask file; the message names the key.
    """
    try:
        return _read_metadata(split(data)[0])[0]
    except MaskFileError as error:
        raise MaskFileError(f"{where}: {error}") from error


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


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
            raise ValueError("not a text")
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise MaskFileError(
            f"metadata key {key!r}: expected JSON in a text, got what cannot be read ({error})"
        ) from error


def _read_widths(widths: object) -> dict[str, tuple[int, ...]]:
    if not isinstance(widths, dict) or not widths:
        raise MaskFileError("metadata key 'widths': expected an object with at least one site")
    total = 0
    for name, shape in widths.items():
        sound = isinstance(shape, list) and shape and all(type(n) is int and 0 < n <= MAX_BITS for n in shape)
        if not sound or len(shape) != (2 if name.endswith(":weight") else 1):
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
    """Refuse a file that says the same in other bytes (order, spaces, gaps): its digest would name nothing."""
    header = header_bytes(arrays, _metadata(meta, shapes))
    if data[: len(header)] != header:
        raise MaskFileError("header: not in canonical form; expected exactly the bytes that save_masks writes")
