"""Mask sets and their algebra: site name -> bool tensor, True = keep. No files, no model.

The law that everything rests on: `compose` is elementwise AND. It commutes, associates, is idempotent and monotone: one
more mask set never switches a bit back on. A site that a set does not name is kept whole by it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from safeflux.errors import MaskMismatchError
from safeflux.sites import Site


class Count(NamedTuple):
    """How many bits are off, of how many."""

    masked: int
    total: int

    @property
    def share(self) -> float:
        """Share of the bits that are off, 0 to 1; 0 where there are no bits."""
        return self.masked / self.total if self.total else 0.0


class Change(NamedTuple):
    """How many bits a change of masks switches off, and how many it switches on again."""

    off: int
    on: int


@dataclass(frozen=True, eq=False)
class MaskSet(Mapping[str, torch.Tensor]):
    """What is kept at each site: a mapping from site name (`fqn:kind`) to a bool tensor on the CPU, True = keep.

    Compares by content and never changes. The tensors are taken as they are, without a copy, since they may be
    gigabytes: whoever hands them over must not write to them any more.

    Args:
        masks: Vectors of shape (neurons,) for neuron sites, matrices of shape (rows, columns) for weight sites.

    Raises:
        MaskMismatchError: A name is not `fqn:kind`, or a tensor is not a non-empty bool vector or matrix on the CPU.
    """

    masks: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        """Check every entry and put the sites in the order of their names."""
        for name, mask in self.masks.items():
            _check(name, mask)
        object.__setattr__(self, "masks", MappingProxyType(dict(sorted(self.masks.items()))))

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the mask of one site."""
        return self.masks[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the site names, sorted."""
        return iter(self.masks)

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self.masks)

    def __eq__(self, other: object) -> bool:
        """Say whether the other set names the same sites with the same bits."""
        if not isinstance(other, MaskSet):
            return NotImplemented
        return list(self) == list(other) and all(torch.equal(mask, other[name]) for name, mask in self.items())

    def __hash__(self) -> int:
        """Hash the site names; equal sets have equal hashes."""
        return hash(tuple(self))

    def __repr__(self) -> str:
        """Show the counts, not the bits."""
        count = self.count
        return f"MaskSet({len(self)} sites, {count.masked} of {count.total} bits off)"

    def __reduce__(self) -> tuple[type["MaskSet"], tuple[dict[str, torch.Tensor]]]:
        """Pickle and deepcopy by content; the read-only view of the mapping can do neither."""
        return MaskSet, (dict(self.masks),)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each site's mask."""
        return {name: tuple(mask.shape) for name, mask in self.items()}

    @cached_property
    def counts(self) -> Mapping[str, Count]:
        """Bits off and bits in all, by site. Counted once, by NumPy, which is several times as fast as torch."""
        return {
            name: Count(mask.numel() - int(np.count_nonzero(mask.numpy())), mask.numel()) for name, mask in self.items()
        }

    @property
    def counts_by_kind(self) -> dict[str, Count]:
        """Bits off and bits in all, by kind of site (`ff`, `mlp`, `norm`, `weight`)."""
        sums: dict[str, Count] = {}
        for name, count in self.counts.items():
            kind = kind_of(name)
            before = sums.get(kind, Count(0, 0))
            sums[kind] = Count(before.masked + count.masked, before.total + count.total)
        return dict(sorted(sums.items()))

    @property
    def count(self) -> Count:
        """Bits off and bits in all."""
        counts = self.counts.values()
        return Count(sum(c.masked for c in counts), sum(c.total for c in counts))

    @property
    def share_masked(self) -> float:
        """Share of all bits of the named sites that are off."""
        return self.count.share


def kind_of(name: str) -> str:
    """Return the kind that ends a site name.

    Example:
        >>> kind_of("transformer_blocks.0.ff:ff")
        'ff'
    """
    return name.rpartition(":")[2]


def keep_all(sites: Iterable[Site]) -> MaskSet:
    """Return the mask set that keeps every bit of the given sites: the identity of `compose` on them."""
    return MaskSet({site.name: torch.ones(site.shape, dtype=torch.bool) for site in sites})


def compose(*sets: MaskSet) -> MaskSet:
    """Return the elementwise AND of mask sets: a bit stays on only if every set keeps it.

    The result names every site that any set names. Without arguments it is the empty set, the identity.

    Example:
        >>> a = MaskSet({"x:ff": torch.tensor([True, True, False])})
        >>> b = MaskSet({"x:ff": torch.tensor([False, True, True])})
        >>> compose(a, b)["x:ff"].tolist()
        [False, True, False]

    Raises:
        MaskMismatchError: Two sets give one site different shapes.
    """
    return reduce(_and, sets, MaskSet({}))


def overlap(a: MaskSet, b: MaskSet) -> dict[str, int]:
    """Return how many bits both sets switch off, by site; sites with none are left out.

    Raises:
        MaskMismatchError: The sets give one site different shapes.
    """
    shared = {name: int((~(x | y)).count_nonzero()) for name, x, y in _paired(a, b)}
    return {name: count for name, count in shared.items() if count}


def diff(a: MaskSet, b: MaskSet) -> dict[str, Change]:
    """Return what going from `a` to `b` changes, by site; sites that stay the same are left out.

    Raises:
        MaskMismatchError: The sets give one site different shapes.
    """
    changes = {
        name: Change(off=int((x & ~y).count_nonzero()), on=int((y & ~x).count_nonzero()))
        for name, x, y in _paired(a, b)
    }
    return {name: change for name, change in changes.items() if any(change)}


def check_fit(masks: MaskSet, sites: Mapping[str, Site]) -> None:
    """Make sure that every mask belongs to a site of the model, in its exact shape, and that there is at least one.

    Raises:
        MaskMismatchError: Sites that the model does not have, or other shapes; the message names the first few.
    """
    if not masks:
        raise MaskMismatchError("expected masks for at least one site, got an empty mask set: nothing would be masked")
    unknown = [f"{name} (the model has no such site)" for name in masks if name not in sites]
    wrong = [
        f"{name} (mask {shape}, model {sites[name].shape})"
        for name, shape in masks.shapes.items()
        if name in sites and shape != sites[name].shape
    ]
    if found := unknown + wrong:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise MaskMismatchError(
            f"{len(found)} of {len(masks)} sites do not fit this model: {'; '.join(found[:3])}{more}. "
            "Use masks that were trained for this base model."
        )


def _check(name: str, mask: torch.Tensor) -> None:
    fqn, colon, kind = name.rpartition(":")
    if not (fqn and colon and kind):
        raise MaskMismatchError(f"mask {name!r}: expected a site name such as 'transformer_blocks.0.ff:ff'")
    axes = 2 if kind == "weight" else 1
    if mask.dtype != torch.bool or mask.device.type != "cpu" or mask.dim() != axes or not mask.numel():
        raise MaskMismatchError(
            f"mask {name!r}: expected a non-empty bool tensor with {axes} axes on the CPU, "
            f"got {mask.dtype} of shape {tuple(mask.shape)} on {mask.device}"
        )


def _and(a: MaskSet, b: MaskSet) -> MaskSet:
    _check_same_shapes(a, b)
    both = a.keys() & b.keys()
    return MaskSet({**a, **b, **{name: a[name] & b[name] for name in both}})


def _check_same_shapes(a: MaskSet, b: MaskSet) -> None:
    for name in sorted(a.keys() & b.keys()):
        if a[name].shape != b[name].shape:
            raise MaskMismatchError(
                f"site {name!r}: one mask has shape {tuple(a[name].shape)}, another {tuple(b[name].shape)}; "
                "masks of different base models cannot be composed"
            )


def _paired(a: MaskSet, b: MaskSet) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield the masks of both sets site by site; a site that one set does not name is kept whole by it."""
    _check_same_shapes(a, b)
    for name in sorted({*a, *b}):
        whole = torch.ones_like((a if name in a else b)[name])
        yield name, a.get(name, whole), b.get(name, whole)
