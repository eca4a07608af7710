"""What is left of each tensor once masked neurons are removed, by name, in every layout. No torch.

Only the hidden neurons of feed-forwards can be removed (the kinds in `REMOVABLE`): only their own two layers depend on
their number. A row of a modulation and an element of a matrix stay, and are zero instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from safeflux.errors import ApplyError, ModelError
from safeflux.families import Kind, Layout
from safeflux.families.sites import Shapes, Site, find_sites, spans
from safeflux.masks.mask_set import MaskSet

REMOVABLE: tuple[Kind, ...] = ("ff", "mlp")
WIDTHS = "safeflux_widths"
"""The key in a transformer's config that holds its widths: site name to number of neurons, where some were removed.

It has no leading underscore, so that diffusers, which does not know the key, warns about it.
"""
ROUND_TO = 64
"""Widths are multiples of this. On CPUs any width runs at the same speed per neuron (`benchmarks/compact.py`). GPUs
want rows aligned to cache lines (64 bf16 numbers), block quantisers use blocks of 64, and tensor parallelism halves the
width."""

Index = npt.NDArray[np.int64]


class Kept(NamedTuple):
    """What is kept of one tensor: the sorted indices of its rows and of its columns; None for all of them."""

    rows: Index | None
    columns: Index | None

    def shape_of(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that is left of a tensor; a vector only has rows."""
        return tuple(old if index is None else len(index) for old, index in zip(whole, self, strict=False))


WHOLE = Kept(None, None)
"""All of a tensor is kept."""


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor along which a site's neurons lie: rows (0) or columns (1).

    They are at its end, in `pieces` runs of the site's width, after `before` rows or columns of something else.
    """

    tensor: str
    number: int
    before: int
    pieces: int

    def size(self, width: int) -> int:
        """The length of the axis if the site has this width."""
        return self.before + self.pieces * width

    def index(self, kept: Index, width: int) -> Index:
        """The indices along the axis that are kept if these neurons, of `width`, are."""
        ahead = np.arange(self.before, dtype=np.int64)
        return np.concatenate([ahead, *(kept + self.before + piece * width for piece in range(self.pieces))])


def axes(site: Site, layout: Layout = "diffusers") -> list[Axis]:
    """Return every axis along which the neurons of a site lie.

    Example:
        >>> axes(Site("single_transformer_blocks.3", "mlp", (96,), "flux2", 32))[0]
        Axis(tensor='single_transformer_blocks.3.attn.to_qkv_mlp_proj.weight', number=0, before=96, pieces=2)
    """
    starts: dict[tuple[str, int], list[int]] = {}
    for span in spans(site, layout):
        starts.setdefault((span.tensor, span.axis), []).append(span.start)
    return [Axis(*where, before=min(found), pieces=len(found)) for where, found in starts.items()]


def kept_neurons(keep: npt.NDArray[np.bool_], round_to: int = ROUND_TO) -> Index:
    """Return the sorted indices of the neurons to keep: those that a mask keeps, and as few others as rounding needs.

    At least one is kept, since diffusers, quantisers and kernels cannot handle a layer without neurons.

    Args:
        keep: One mask of shape (neurons,), True = keep.
        round_to: Their number is a multiple of this, or all there are. The masked ones among them must be zero.

    Raises:
        ApplyError: `round_to` is less than 1.
    """
    if round_to < 1:
        raise ApplyError(f"round_to: expected an integer of at least 1, got {round_to}; 1 removes all masked neurons")
    kept, masked = np.flatnonzero(keep), np.flatnonzero(~keep)
    width = -(-max(1, len(kept)) // round_to) * round_to
    return np.sort(np.concatenate([kept, masked[: max(0, width - len(kept))]]))


def kept_by_site(sites: Mapping[str, Site], masks: MaskSet, round_to: int = ROUND_TO) -> dict[str, Index]:
    """Return the neurons to keep (`kept_neurons`) of each site that loses some, by its name.

    Args:
        sites: The model's sites (`find_sites`).
        masks: True = keep. They fit the sites (`mask_set.check_fit`); kinds that are not in `REMOVABLE` are ignored.
        round_to: As for `kept_neurons`.

    Raises:
        ApplyError: `round_to` is less than 1.
    """
    removable = (name for name, site in sites.items() if site.kind in REMOVABLE and name in masks)
    found = {name: kept_neurons(np.asarray(masks[name]), round_to) for name in removable}
    return {name: kept for name, kept in found.items() if len(kept) < sites[name].shape[0]}


def keeps(
    sites: Mapping[str, Site], masks: MaskSet, layout: Layout = "diffusers", round_to: int = ROUND_TO
) -> dict[str, Kept]:
    """Return the rows and columns to keep of each tensor that loses some; a tensor that is not named stays whole.

    Args:
        sites: The model's sites (`find_sites`).
        masks: As for `kept_by_site`.
        layout: The naming that the tensors follow.
        round_to: As for `kept_neurons`.

    Raises:
        ApplyError: `round_to` is less than 1.
    """
    found = {}
    for name, kept in kept_by_site(sites, masks, round_to).items():
        for axis in axes(sites[name], layout):
            index = axis.index(kept, sites[name].shape[0])
            found[axis.tensor] = Kept(None, index) if axis.number else Kept(index, None)
    return found


def recorded_widths(config: Mapping[str, Any], sites: Mapping[str, Site]) -> dict[str, int]:
    """Return the widths that a transformer's config records: site name to number of neurons, for sites that lost some.

    Args:
        config: As in `config.json`.
        sites: Those of the whole model.

    Raises:
        ModelError: There is no record, or it does not fit this model.
    """
    record = config.get(WIDTHS)
    if not isinstance(record, Mapping):
        raise ModelError(
            f"config.json: expected {WIDTHS!r} with the widths of a compacted model, got {record!r}. Load a model that "
            "is not compacted with `from_pretrained`."
        )
    for name, width in record.items():
        site = sites.get(name)
        if site is None or site.kind not in REMOVABLE:
            raise ModelError(f"config.json: {WIDTHS!r} names {name!r}, but this model has no such feed-forward")
        if type(width) is not int or not 1 <= width < site.shape[0]:
            raise ModelError(
                f"config.json: {WIDTHS!r}, {name!r}: expected an integer from 1 to {site.shape[0] - 1}, got {width!r}"
            )
    return dict(record)


def compact_shapes(
    config: Mapping[str, Any], whole: Shapes, layout: Layout = "diffusers"
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the tensors of a compacted model have.

    Args:
        config: Its transformer's config, with the record of its widths.
        whole: The shapes of all tensors, by name, before anything was removed.
        layout: The naming that the tensors follow.

    Raises:
        ModelError: `whole` is not a FLUX model, or the record is missing or does not fit it.
    """
    sites = find_sites(whole, layout)
    shapes = dict(whole)
    for name, width in recorded_widths(config, sites).items():
        for axis in axes(sites[name], layout):
            shape = list(shapes[axis.tensor])
            shape[axis.number] = axis.size(width)
            shapes[axis.tensor] = tuple(shape)
    return shapes
