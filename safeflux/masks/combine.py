"""Mask files compared, combined into one, and exported for other tools. Needs no torch.

The same files give the same bytes, in any order.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from safeflux.disk.canonical import canonical_json
from safeflux.errors import MaskFileError, MaskMismatchError
from safeflux.families.fingerprint import TOLERANCE, same_base
from safeflux.masks.encoding import decode
from safeflux.masks.file import read_bytes
from safeflux.masks.mask_set import MaskSet, compose
from safeflux.masks.meta import MaskMeta
from safeflux.masks.store import StoredMask


def read_stored(path: str | os.PathLike[str]) -> StoredMask:
    """Read a mask file by its path, with the digest of its bytes.

    Raises:
        MaskFileError: It cannot be read, or is not a mask file.
    """
    data = read_bytes(path)
    masks, meta = decode(data, os.fspath(path))
    return StoredMask(Path(path).stem, Path(path), hashlib.sha256(data).hexdigest(), meta, masks)


def sources_digest(digests: Iterable[str]) -> str:
    """Return the `config_sha256` of masks made from files: the sha256 of the files' digests, sorted, one per line."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def meta_changes(old: MaskMeta, new: MaskMeta) -> dict[str, tuple[Any, Any]]:
    """Return the metadata that differ, by key: the old value and the new one."""
    before, after = asdict(old), asdict(new)
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def join(parts: Sequence[StoredMask], category: str, licence: str | None = None) -> tuple[MaskSet, MaskMeta]:
    """Combine the masks of several files of one base model by AND, and merge their metadata.

    Law: the order of the parts does not matter, and a part given twice counts once. The concepts are those of all
    parts, by category. There are no figures, since those of the parts do not hold for the whole.

    Args:
        parts: At least two different files.
        category: What the result erases, as policies name it.
        licence: Of the result; needed if the parts have different ones.

    Raises:
        MaskFileError: There is only one file, or the licences differ and none is given.
        MaskMismatchError: Two parts are for different base models.
    """
    different = {part.sha256: part for part in parts}.values()
    ordered = sorted(different, key=lambda part: (part.meta.category, part.sha256))
    if len(ordered) < 2:
        raise MaskFileError(f"expected at least two different mask files, got {len(ordered)}: nothing to combine")
    for one, other in combinations(ordered, 2):
        _check_base(one, other)
    # Of fingerprints of the same base, that of coarse weights would accept more models than the others do.
    finest = min(ordered, key=lambda part: _tolerance(part.meta.fingerprint)).meta
    meta = MaskMeta(
        category=category,
        concepts=tuple(dict.fromkeys(concept for part in ordered for concept in part.meta.concepts)),
        base_model=finest.base_model,
        family=finest.family,
        fingerprint=finest.fingerprint,
        method=f"AND of the mask files {', '.join(f'sha256:{part.sha256}' for part in ordered)}",
        config_sha256=sources_digest(part.sha256 for part in ordered),
        licence=licence or _one_licence(ordered),
    )
    return compose(*(part.masks for part in ordered)), meta


def export(masks: MaskSet, meta: MaskMeta, form: str) -> bytes:
    """Return masks in a format of other tools. Law: reading it back gives the same mask set.

    Args:
        masks: The masks to write.
        meta: Written too if the format has a place for it.
        form: A key of `FORMS`. `npz`: one bool array per site, by its name, for `numpy.load`. `safetensors`: the same
            as BOOL tensors; the metadata are JSON under the key `safeflux`. `json`: `meta`, and for each of `sites` its
            `shape` and the indices of the elements that are `off`, in row-major order.
    """
    return FORMS[form](masks, meta)


def _npz(masks: MaskSet, meta: MaskMeta) -> bytes:
    # `numpy.savez` would record the operating system.
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, keep in masks.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.create_system = 3
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, keep, version=(1, 0), allow_pickle=False)
    return data.getvalue()


def _safetensors(masks: MaskSet, meta: MaskMeta) -> bytes:
    from safetensors.numpy import save

    # One key, since the library writes several in no fixed order.
    data: bytes = save(dict(masks), {"safeflux": canonical_json(asdict(meta))})
    return data


def _json(masks: MaskSet, meta: MaskMeta) -> bytes:
    sites = {name: {"shape": bits.shape, "off": bits.off().tolist()} for name, bits in masks.bits.items()}
    return (canonical_json({"meta": asdict(meta), "sites": sites}) + "\n").encode()


FORMS: Mapping[str, Callable[[MaskSet, MaskMeta], bytes]] = {"npz": _npz, "safetensors": _safetensors, "json": _json}
"""Export formats, by the suffix of the file."""


def _tolerance(fingerprint: str) -> float:
    return max(tolerance for end, tolerance in TOLERANCE.items() if fingerprint.endswith(end))


def _check_base(one: StoredMask, other: StoredMask) -> None:
    if one.meta.family != other.meta.family or not same_base(one.meta.fingerprint, other.meta.fingerprint):
        raise MaskMismatchError(
            f"{other.path}: made for {other.meta.base_model} ({other.meta.family}), other weights than those of "
            f"{one.path}, {one.meta.base_model} ({one.meta.family}); only masks of one base model can be combined"
        )


def _one_licence(parts: Sequence[StoredMask]) -> str:
    for part in parts[1:]:
        if part.meta.licence != parts[0].meta.licence:
            raise MaskFileError(
                f"{part.path}: its licence is {part.meta.licence}, that of {parts[0].path} is "
                f"{parts[0].meta.licence}; give the licence of the result with --licence"
            )
    return parts[0].meta.licence
