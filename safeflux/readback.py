"""What is off in files, as read from them: masked places must be zero. No torch; some rows are held at a time."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from safeflux.checkpoint import Checkpoint
from safeflux.copying import Progress
from safeflux.errors import ModelError
from safeflux.families import Layout
from safeflux.masks import MaskSet
from safeflux.patch import Spot, spots
from safeflux.plan import Plan
from safeflux.status import State, Status, make_status
from safeflux.stream import rows_of

Flags = npt.NDArray[np.bool_]
Rows = tuple[int, npt.NDArray[Any]]
"""The number of a tensor's row, and an array with it and some of the next, zero where a number is zero."""


@dataclass(frozen=True)
class FileStatus:
    """What a policy is worth in files, and what they say of themselves."""

    status: Status
    plan: Plan
    told: Mapping[str, Any] | None
    """What `bake` wrote into the header; None for files that were made otherwise."""


def parse_told(text: str | None, where: object) -> Mapping[str, Any] | None:
    """Read what a guarded file says of itself; None for none.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        told: Mapping[str, Any] | None = None if text is None else json.loads(text)
        if told is not None:
            str(told["base"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{where}: metadata key 'safeflux' cannot be read; make the model again") from error
    return told


def base_of(told: Mapping[str, Any] | None, base: str | os.PathLike[str] | None, where: object) -> str:
    """Return the fingerprint of the base model: of its files if they are named, else what a guarded file says.

    Raises:
        ModelError: Nothing tells it.
    """
    if base is not None:
        return Checkpoint.open(base).fingerprint
    if told is None:
        raise ModelError(
            f"{where}: does not say which base model it was made from, as what safeflux writes does; name the base "
            "model (--base)"
        )
    return str(told["base"])


def rows_in(found: Checkpoint, name: str) -> Iterator[Rows]:
    """Yield a tensor of a model's files some rows at a time, zero where its numbers are."""
    held = found.tensors[name]
    with held.file.path.open("rb", buffering=0) as file:
        for first, cells in rows_of(file, held.tensor):
            yield first, held.tensor.format.nonzero(cells)


def read_back(
    plan: Plan,
    layout: Layout,
    rows: Callable[[str], Iterable[Rows]],
    told: Mapping[str, Any] | None,
    progress: Progress | None,
) -> FileStatus:
    """Read every place that a plan masks, and say what is off.

    Args:
        plan: What is asked for.
        layout: Of the tensors' names.
        rows: Reads a tensor, by its name.
        told: What the file says of itself.
        progress: Is told how far it is, in tensors.
    """
    touched = spots(plan.sites, plan.masks, layout)
    sides: dict[str, tuple[list[Flags], list[Flags]]] = {}
    for done, (name, where) in enumerate(touched.items(), 1):
        for spot, flags in zip(where, _left(rows(name), where), strict=True):
            sides.setdefault(spot.site, ([], []))[spot.span.axis].append(flags)
        if progress:
            progress("reading masked tensors", done, len(touched))
    in_force = MaskSet({site: _keep(plan.masks, site, *both) for site, both in sides.items()})
    faults = tuple(
        f"site {name!r}: {count.masked - in_force.counts[name].masked} of {count.masked} masked places are not zero"
        for name, count in plan.masks.counts.items()
        if count.masked and in_force.counts[name].masked < count.masked
    )
    broken = State.DEGRADED if in_force.count.masked else State.UNGUARDED
    status = make_status(plan, in_force, broken if faults else State.GUARDED, faults)
    return FileStatus(status, plan, told)


def _keep(masks: MaskSet, site: str, rows: Sequence[Flags], columns: Sequence[Flags]) -> Flags:
    """The masks that are in force at a site: what is on by all of its rows and by its column is on."""
    on = np.logical_or.reduce([*rows]) if rows else np.logical_or.reduce([*columns])
    if rows and columns:
        on &= np.logical_or.reduce([*columns])
    keep = masks[site]
    keep.flat[masks.bits[site].off()] = on
    return keep


def _left(rows: Iterable[Rows], where: Sequence[Spot]) -> list[Flags]:
    """For each spot and each of its masked places, whether anything there is not zero."""
    flags = [np.zeros(spot.bits.num_off, dtype=np.bool_) for spot in where]
    off = [spot.bits.off() for spot in where]
    for first, cells in rows:
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
