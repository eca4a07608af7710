"""The places of mask bits in the tensors of one layout, for writing in memory and in files alike."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from safeflux.families import Layout
from safeflux.families.sites import Site, Span, spans
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.packed import PackedMask

Form = Literal["both", "rows", "columns"]


FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class Spot:
    """A mask, and the place of its bits in one tensor."""

    site: str
    bits: PackedMask
    span: Span


def spots(sites: Mapping[str, Site], masks: MaskSet, layout: Layout, form: Form = "both") -> dict[str, list[Spot]]:
    """Return the masked places of each tensor, by its name in the layout; tensors without a masked bit are left out.

    Args:
        sites: The model's sites, by name.
        masks: Masks that fit them.
        layout: Of the tensors.
        form: Which sides of a neuron with rows and columns are filled. One of them is enough to switch it off. Rows
            without columns (modulation) are always filled, and so are single weights.
    """
    found: dict[str, list[Spot]] = {}
    for name, bits in masks.bits.items():
        for span in _chosen(spans(sites[name], layout), form) if bits.num_off else ():
            found.setdefault(span.tensor, []).append(Spot(name, bits, span))
    return found


def _chosen(found: Sequence[Span], form: Form) -> Iterable[Span]:
    if form == "both" or not any(span.axis for span in found):
        return found
    return (span for span in found if span.axis == (form == "columns"))
