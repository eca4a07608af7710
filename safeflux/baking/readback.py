"""Reads from files which masked places are zero. No torch; only some rows are in memory at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safeflux.baking.stamp import Stamp
from safeflux.checkpoints.tensor_file import Rows
from safeflux.disk.copying import Progress
from safeflux.families import Layout
from safeflux.families.sites import num_axes
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.spots import Spot, spots
from safeflux.plan.resolve import Plan
from safeflux.plan.status import State, Status, make_status

Flags = npt.NDArray[np.bool_]
_SLACK, _FEW = 2, 8
"""Zeros up to this multiple of the share elsewhere, plus this number for small tensors, may be chance."""


@dataclass(frozen=True)
class FileStatus:
    """The status of a policy in files, and the stamp in them."""

    status: Status
    plan: Plan
    stamp: Stamp | None
    """The stamp in the files' metadata; None for files that safeflux did not write."""


def read_back(
    plan: Plan,
    layout: Layout,
    rows: Callable[[str], Rows],
    stamp: Stamp | None,
    progress: Progress | None,
) -> FileStatus:
    """Read every place that a plan masks, and return which of them are off.

    Args:
        plan: The requested masks.
        layout: Layout of the tensors' names.
        rows: Reads a tensor, by its name.
        stamp: The stamp in the files' metadata.
        progress: Called with the progress in tensors.
    """
    touched = spots(plan.sites, plan.masks, layout)
    sides: dict[str, tuple[list[Flags], list[Flags]]] = {}
    zeros: dict[str, float] = {}
    for done, (name, where) in enumerate(touched.items(), 1):
        found, share = _left(rows(name), where)
        for spot, flags in zip(where, found, strict=True):
            sides.setdefault(spot.site, ([], []))[spot.span.axis].append(flags)
            zeros[spot.site] = share
        if progress:
            progress("reading masked tensors", done, len(touched))
    in_force = MaskSet({site: _keep(plan.masks, site, *both) for site, both in sides.items()})
    faults = tuple(
        f"site {name!r}: {count.masked - in_force.counts[name].masked} of {count.masked} masked places are not zero"
        for name, count in plan.masks.counts.items()
        if count.masked and in_force.counts[name].masked < count.masked
    )
    state = State.GUARDED
    if faults:
        state = State.UNGUARDED if stamp is None and _is_chance(plan.masks, in_force, zeros) else State.DEGRADED
    status = make_status(plan, in_force, state, faults)
    return FileStatus(status, plan, stamp)


def _keep(masks: MaskSet, site: str, rows: Sequence[Flags], columns: Sequence[Flags]) -> Flags:
    """The mask that is in force at a site: a neuron is on if any of its rows and its column are on."""
    on = np.logical_or.reduce([*rows]) if rows else np.logical_or.reduce([*columns])
    if rows and columns:
        on &= np.logical_or.reduce([*columns])
    keep = masks[site]
    keep.flat[masks.bits[site].off()] = on
    return keep


def _is_chance(masks: MaskSet, in_force: MaskSet, zeros: Mapping[str, float]) -> bool:
    """Whether masked places have no more zeros than the rest of their tensors: quantisers round to zero.

    Args:
        masks: The requested masks.
        in_force: The masked places that are zero.
        zeros: Share of zeros elsewhere in the tensor of each site.
    """
    for name, count in in_force.counts.items():
        # neither whole rows or columns nor plain floats are rounded to zero by chance
        is_rounded = num_axes(name) == 2 and zeros[name] > 0
        most = _SLACK * zeros[name] * masks.counts[name].masked + _FEW if is_rounded else 0
        if count.masked > most:
            return False
    return True


def _left(rows: Rows, where: Sequence[Spot]) -> tuple[list[Flags], float]:
    """For each spot, whether each of its masked places is not zero; and the share of zeros elsewhere in the tensor.

    The share leaves masked single weights out; it is 0 if there are none.
    """
    flags = [np.zeros(spot.bits.num_off, dtype=np.bool_) for spot in where]
    off = [spot.bits.off() for spot in where]
    are_single = any(len(spot.bits.shape) == 2 for spot in where)
    num_zeros = num_cells = 0
    for first, cells in rows:
        last = first + len(cells)
        if are_single:
            num_zeros, num_cells = num_zeros + cells.size - int(np.count_nonzero(cells)), num_cells + cells.size
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
    single = [found for spot, found in zip(where, flags, strict=True) if len(spot.bits.shape) == 2]
    num_zeros -= sum(found.size - int(np.count_nonzero(found)) for found in single)
    num_cells -= sum(found.size for found in single)
    return flags, num_zeros / num_cells if num_cells > 0 else 0.0
