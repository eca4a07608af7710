"""Mask sets and their algebra: site name -> bool array, True = keep. No files, no model, no torch.

The basic law: `compose` is elementwise AND. It is commutative, associative, idempotent and monotone: one more mask set
never switches a bit back on. A site that a set does not name is kept whole.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import InitVar, dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from safeflux.errors import MaskMismatchError
from safeflux.families.sites import Site, kind_of, num_axes
from safeflux.masks.packed import Array, Keep, PackedMask, all_of, num_off_in_both


class Count(NamedTuple):
    """The number of bits that are off, and of all bits."""

    masked: int
    total: int

    @property
    def share(self) -> float:
        """Share of the bits that are off, 0 to 1; 0 if there are no bits."""
        return self.masked / self.total if self.total else 0.0


class Change(NamedTuple):
    """The number of bits that a change of masks switches off, and back on."""

    off: int
    on: int


@dataclass(frozen=True, eq=False)
class MaskSet(Mapping[str, Keep]):
    """An immutable mapping from site name (`fqn:kind`) to a NumPy bool array, True = keep. Compares by content.

    The bits are stored packed, as in a mask file, so that a few weights out of billions take a few megabytes; each
    access to a site unpacks a new array.

    Args:
        masks: Arrays of bool, torch tensors on the CPU, or `PackedMask`; of shape (neurons,) for neuron sites, (rows,
            columns) for weight sites.

    Raises:
        MaskMismatchError: A name is not `fqn:kind`, or a mask is not a non-empty bool vector or matrix on the CPU.
    """

    masks: InitVar[Mapping[str, Any]]
    bits: Mapping[str, PackedMask] = field(init=False)
    """The packed bits of each site, by name, sorted."""

    def __post_init__(self, masks: Mapping[str, Any]) -> None:
        """Check and pack every entry, sorted by name."""
        packed = {name: _checked(name, mask) for name, mask in sorted(masks.items())}
        object.__setattr__(self, "bits", MappingProxyType(packed))

    def __getitem__(self, name: str) -> Keep:
        """Return the mask of one site, unpacked."""
        return self.bits[name].keep()

    def __iter__(self) -> Iterator[str]:
        """Yield the site names, sorted."""
        return iter(self.bits)

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self.bits)

    def __contains__(self, name: object) -> bool:
        """Return whether the set names a site; nothing is unpacked."""
        return name in self.bits

    def __eq__(self, other: object) -> bool:
        """Return whether the other set names the same sites with the same bits."""
        if not isinstance(other, MaskSet):
            return NotImplemented
        return dict(self.bits) == dict(other.bits)

    def __hash__(self) -> int:
        """Hash the site names; equal sets have equal hashes."""
        return hash(tuple(self))

    def __repr__(self) -> str:
        """Show the counts, not the bits."""
        count = self.count
        return f"MaskSet({len(self)} sites, {count.masked} of {count.total} bits off)"

    def __reduce__(self) -> tuple[type["MaskSet"], tuple[dict[str, PackedMask]]]:
        """Pickle and deepcopy by content; the read-only view of the mapping supports neither."""
        return MaskSet, (dict(self.bits),)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each site's mask."""
        return {name: bits.shape for name, bits in self.bits.items()}

    @property
    def arrays(self) -> dict[str, Array]:
        """The packed bits of each site as the array that a mask file holds (`PackedMask.array`)."""
        return {name: bits.array for name, bits in self.bits.items()}

    @property
    def counts(self) -> Mapping[str, Count]:
        """Bits off and all bits, by site."""
        return {name: Count(bits.num_off, bits.size) for name, bits in self.bits.items()}

    @property
    def counts_by_kind(self) -> dict[str, Count]:
        """Bits off and all bits, by kind of site (`families.Kind`)."""
        sums: dict[str, Count] = {}
        for name, count in self.counts.items():
            kind = kind_of(name)
            before = sums.get(kind, Count(0, 0))
            sums[kind] = Count(before.masked + count.masked, before.total + count.total)
        return dict(sorted(sums.items()))

    @property
    def count(self) -> Count:
        """Bits off and all bits."""
        counts = self.counts.values()
        return Count(sum(c.masked for c in counts), sum(c.total for c in counts))

    @property
    def share_masked(self) -> float:
        """Share of all bits of the named sites that are off."""
        return self.count.share


def keep_all(sites: Iterable[Site]) -> MaskSet:
    """Return the mask set that keeps every bit of the given sites: the identity of `compose` on them."""
    return MaskSet({site.name: np.ones(site.shape, dtype=np.bool_) for site in sites})


def compose(*sets: MaskSet) -> MaskSet:
    """Return the elementwise AND of mask sets: a bit stays on only if every set keeps it.

    The result names every site that any set names. Without arguments it is the empty set, the identity.

    Example:
        >>> a = MaskSet({"x:ff": np.array([True, True, False])})
        >>> b = MaskSet({"x:ff": np.array([False, True, True])})
        >>> compose(a, b)["x:ff"].tolist()
        [False, True, False]

    Raises:
        MaskMismatchError: Two sets give one site different shapes.
    """
    by_site: dict[str, list[PackedMask]] = {}
    for masks in sets:
        for name, bits in masks.bits.items():
            by_site.setdefault(name, []).append(bits)
    for name, several in by_site.items():
        for other in several[1:]:
            if other.shape != several[0].shape:
                raise _shapes_differ(name, several[0].shape, other.shape)
    return MaskSet({name: all_of(several) for name, several in by_site.items()})


def overlap(a: MaskSet, b: MaskSet) -> dict[str, int]:
    """Return the number of bits that both sets switch off, by site; sites with none are left out.

    Raises:
        MaskMismatchError: The sets give one site different shapes.
    """
    shared = {name: num_off_in_both(a.bits[name], b.bits[name]) for name in _named(a, b) if name in a and name in b}
    return {name: count for name, count in shared.items() if count}


def diff(a: MaskSet, b: MaskSet) -> dict[str, Change]:
    """Return the changes from `a` to `b`, by site; unchanged sites are left out.

    Raises:
        MaskMismatchError: The sets give one site different shapes.
    """
    shared = overlap(a, b)
    before, after = ({name: bits.num_off for name, bits in masks.bits.items()} for masks in (a, b))
    changes = {
        name: Change(after.get(name, 0) - shared.get(name, 0), before.get(name, 0) - shared.get(name, 0))
        for name in _named(a, b)
    }
    return {name: change for name, change in changes.items() if any(change)}


def check_fit(masks: MaskSet, sites: Mapping[str, Site]) -> None:
    """Check that every mask belongs to a site of the model, in its exact shape, and that there is at least one.

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


def _checked(name: str, mask: Any) -> PackedMask:
    fqn, colon, kind = name.rpartition(":")
    if not (fqn and colon and kind):
        raise MaskMismatchError(f"mask {name!r}: expected a site name such as 'transformer_blocks.0.ff:ff'")
    device = str(getattr(mask, "device", "cpu"))
    axes, shape = num_axes(name), tuple(mask.shape)
    is_bool = isinstance(mask, PackedMask) or str(mask.dtype) in ("bool", "torch.bool")
    if not is_bool or device != "cpu" or len(shape) != axes or 0 in shape:
        raise MaskMismatchError(
            f"mask {name!r}: expected a non-empty bool array with {axes} axes on the CPU, "
            f"got {getattr(mask, 'dtype', 'bits')} of shape {shape} on {device}"
        )
    return mask if isinstance(mask, PackedMask) else PackedMask.of(np.asarray(mask))


def _shapes_differ(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> MaskMismatchError:
    return MaskMismatchError(
        f"site {name!r}: one mask has shape {one}, another {other}; masks of different base models cannot be composed"
    )


def _named(a: MaskSet, b: MaskSet) -> list[str]:
    """The sites that either set names, after a check that both give them the same shape."""
    for name in a.bits.keys() & b.bits.keys():
        if a.bits[name].shape != b.bits[name].shape:
            raise _shapes_differ(name, a.bits[name].shape, b.bits[name].shape)
    return sorted({*a, *b})
