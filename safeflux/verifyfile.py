"""Whether files are guarded: their masked elements are read and must be zero. No torch; a few megabytes of memory."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from safeflux.bakejob import KEY
from safeflux.checkpoint import Checkpoint
from safeflux.errors import ModelError
from safeflux.masks import MaskSet
from safeflux.patch import Spot, spots
from safeflux.plan import Plan, plan_for
from safeflux.policy import Policy, load_policy
from safeflux.status import State, Status, make_status
from safeflux.store import Store, StoreLike, open_store
from safeflux.stream import rows_of
from safeflux.tensorfile import Stored

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FileStatus:
    """What a policy is worth in files, and what they say of themselves."""

    status: Status
    plan: Plan
    told: Mapping[str, Any] | None
    """What `bake` wrote into the header; None for files that were made otherwise."""


def verify_files(
    path: str | os.PathLike[str],
    policy: str | os.PathLike[str] | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    base: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> FileStatus:
    """Read every masked element of a policy in a model's files, and say what is off.

    A neuron is off where its rows with their biases are zero, or its column.

    Args:
        path: A folder of diffusers or one file, as for `bake`.
        policy: Name of a bundled policy, path of a policy file, or a `Policy`.
        store: A folder, or several, with mask files besides the bundled ones.
        base: The base model's files; not needed where `bake` wrote the files, which say it.
        progress: Is told how far it is, in bytes.

    Raises:
        ModelError: There is no FLUX model, or nothing says which base it was made from.
        SafeFluxError: Whatever planning refuses.
    """
    effective, found = load_policy(policy), Checkpoint.open(path)
    told = _told(found)
    if told and told.get("form") == "compact":
        raise ModelError(
            f"{found.path}: is compacted, so that what was masked is no longer there to be read. Hold it against the "
            f"base model: safeflux bake SRC {found.path} --compact --check"
        )
    plan = plan_for(effective, found.sites, _base(found, told, base), open_store(store))
    plan.check_enforces()
    in_force = _in_force(found, plan.masks, progress or (lambda what, done, total: None))
    faults = tuple(
        f"site {name!r}: {count.masked - in_force.counts[name].masked} of {count.masked} masked places are not zero"
        for name, count in plan.masks.counts.items()
        if count.masked and in_force.counts[name].masked < count.masked
    )
    broken = State.DEGRADED if in_force.count.masked else State.UNGUARDED
    state = broken if faults else State.GUARDED
    return FileStatus(make_status(plan, in_force, state, faults), plan, told)


def _told(found: Checkpoint) -> Mapping[str, Any] | None:
    """What the headers say; they must all say the same."""
    texts = {file.metadata.get(KEY) for file in found.files}
    if len(texts) > 1:
        raise ModelError(f"{found.path}: its files were not baked together; bake the model again")
    text = texts.pop()
    try:
        told = None if text is None else json.loads(text)
        if told is not None:
            told["base"], told["policy"]["sha256"]
        return told
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{found.path}: metadata key {KEY!r} cannot be read; bake the model again") from error


def _base(found: Checkpoint, told: Mapping[str, Any] | None, base: str | os.PathLike[str] | None) -> str:
    if base is not None:
        return Checkpoint.open(base).fingerprint
    if told is None:
        raise ModelError(
            f"{found.path}: does not say which base model it was made from, as what `safeflux bake` writes does; name "
            "the base model (--base)"
        )
    return str(told["base"])


def _in_force(found: Checkpoint, masks: MaskSet, progress: Callable[[str, int, int], object]) -> MaskSet:
    touched = spots(found.sites, masks, found.layout)
    total = sum(found.tensors[name].tensor.nbytes for name in touched)
    done = 0
    sides: dict[str, tuple[list[Flags], list[Flags]]] = {}
    for name, where in touched.items():
        held = found.tensors[name]
        with held.file.path.open("rb", buffering=0) as file:
            for spot, flags in zip(where, _left(file, held.tensor, where), strict=True):
                sides.setdefault(spot.site, ([], []))[spot.span.axis].append(flags)
        done += held.tensor.nbytes
        progress("reading masked weights", done, total)
    return MaskSet({site: _keep(masks, site, *both) for site, both in sides.items()})


def _keep(masks: MaskSet, site: str, rows: Sequence[Flags], columns: Sequence[Flags]) -> Flags:
    """The masks that are in force at a site: what is on by all of its rows and by its column is on."""
    on = np.logical_or.reduce([*rows]) if rows else np.logical_or.reduce([*columns])
    if rows and columns:
        on &= np.logical_or.reduce([*columns])
    keep = masks[site]
    keep.flat[masks.bits[site].off()] = on
    return keep


def _left(file: BinaryIO, tensor: Stored, where: Sequence[Spot]) -> list[Flags]:
    """For each spot and each of its masked places, whether anything there is not zero."""
    flags = [np.zeros(spot.bits.num_off, dtype=np.bool_) for spot in where]
    off = [spot.bits.off() for spot in where]
    for first, raw in rows_of(file, tensor):
        cells = tensor.format.nonzero(raw)
        last = first + len(cells)
        any_row: Flags | None = None
        any_column: Flags | None = None
        for spot, numbers, found in zip(where, off, flags, strict=True):
            if len(spot.bits.shape) == 2:
                width = cells.shape[1]
                places = numbers + spot.span.start * width
                here = slice(*np.searchsorted(places, (first * width, last * width)))
                found[here] = cells.reshape(-1)[places[here] - first * width] != 0
            elif spot.span.axis == 0:
                any_row = np.any(cells, axis=1) if any_row is None else any_row
                here = slice(*np.searchsorted(numbers + spot.span.start, (first, last)))
                found[here] = any_row[numbers[here] + spot.span.start - first]
            else:
                any_column = np.bitwise_or.reduce(cells, axis=0) != 0 if any_column is None else any_column
                found |= any_column[numbers + spot.span.start]
    return flags
