"""Where masks touch the tensors of a loaded model, and the bits that are there: what is planned, saved and written.

Bits are handled as integers: zero is zero in every float format, and NaN is copied like any other value.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from safeflux.families import Layout
from safeflux.families.sites import Site, Span, spans
from safeflux.masks.cuts import axes
from safeflux.masks.mask_set import MaskSet, check_fit
from safeflux.masks.packed import Keep
from safeflux.model.index_sets import Elements, Lines, Points, common, copy_, elements_of, kind_of, without
from safeflux.model.weights import check_not_fused, check_plain, named_weights, sites_of

_Shared = tuple[Elements, Elements]
"""What two masks share, as `common` returns it."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Place:
    """The masked elements of one tensor that belong to one site."""

    site: str
    name: str
    tensor: torch.Tensor
    elements: Elements


@dataclass(frozen=True, eq=False)
class Write(Place):
    """Masked elements, and the bits that they had."""

    dtype: torch.dtype
    shape: torch.Size
    saved: torch.Tensor
    added: torch.Tensor | None = None
    """What was written onto the zeros since; None for nothing."""

    @classmethod
    def of(cls, place: Place, bits: torch.Tensor) -> "Write":
        """Save what a place has in a tensor's bits."""
        return cls(**vars(place), dtype=place.tensor.dtype, shape=place.tensor.shape, saved=place.elements.read(bits))

    @classmethod
    def over(cls, place: Place, old: Sequence["Write"], shared: Sequence[_Shared]) -> "Write":
        """Save what a place of a masked tensor has; where old masks switched it off, what they saved."""
        write = cls.of(place, as_bits(place.tensor))
        added = torch.zeros_like(write.saved) if any(was.added is not None for was in old) else None
        for was, (here, there) in zip(old, shared, strict=True):
            copy_(write.saved, here, was.saved, there)
            if added is not None and was.added is not None:
                copy_(added, here, as_bits(was.added), there)
        return write if added is None or not added.any() else replace(write, added=added.view(write.dtype))

    def without(self, shared: Iterable[Elements]) -> "Part":
        """What of it can be put back, and switched off again, while others stay masked that share elements with it."""
        left, where, parts = without(self.elements, shared)
        bits = self._restored()
        if parts:
            bits = bits.clone()
            for part in parts:
                part.fill_(bits)
        return Part(self.tensor, left, bits, where)

    def joined(self, others: Iterable["Write"]) -> "Write":
        """One write of these elements and others of their kind in the same tensor, which they do not share."""
        elements, saved = joined([(write.elements, write.saved) for write in (self, *others)])
        return replace(self, elements=elements, saved=saved)

    @property
    def width(self) -> int:
        """Elements of one row of the tensor."""
        return self.shape[1:].numel()

    def fill_(self) -> None:
        """Switch off."""
        self.elements.fill_(as_bits(self.tensor))

    def restore_(self) -> None:
        """Put back what was there, and what was added on top since."""
        self.elements.put_(as_bits(self.tensor), self._restored())

    def _restored(self) -> torch.Tensor:
        if self.added is None:
            return self.saved
        restored = as_bits(self.saved.view(self.dtype) + self.added)
        return torch.where(self.added == 0, self.saved, restored)  # since -0 + 0 is not -0

    def again(self, place: Place) -> "Write":
        """The same masked elements where the model has them now, together with what was written onto the zeros.

        What fusing an adapter adds, and takes away again, is added up: it is exact, since it lands on zeros. Bits that
        are those saved are the base model's, loaded again.
        """
        now = place.elements.read(as_bits(place.tensor)).to(self.saved.device)
        moved = torch.where(now == self.saved, 0, now).view(self.dtype)
        added = moved if self.added is None else self.added + moved
        return replace(self, tensor=place.tensor, elements=place.elements, added=added if added.any() else None)

    def on(self, tensor: torch.Tensor) -> torch.Tensor:
        """Say for each masked row, column or element whether it is not all zero in a tensor."""
        return self.elements.nonzero(as_bits(tensor))

    def is_off(self, tensor: torch.Tensor) -> bool:
        """Whether all of it is zero in a tensor."""
        return self.elements.are_zero(as_bits(tensor))

    def check_off(self) -> None:
        """Read back what was filled.

        Raises:
            RuntimeError: Something of it is not zero.
        """
        if not self.is_off(self.tensor):
            raise RuntimeError(f"tensor {self.name!r}: masked elements read back as non-zero")


_Place = TypeVar("_Place", bound=Place)


def places(transformer: torch.nn.Module, masks: MaskSet) -> Iterator[Place]:
    """Check everything; yield all that is to be masked. Sites may share elements, so saving ends before writing."""
    sites = sites_of(transformer)
    check_fit(masks, sites)
    check_not_fused(transformer)
    weights = named_weights(transformer)
    for site, name, elements in masked(sites, masks):
        check_plain(name, weights[name])
        yield Place(site, name, weights[name], elements)


def masked(
    sites: Mapping[str, Site], masks: MaskSet, layout: Layout = "diffusers"
) -> Iterator[tuple[str, str, Elements]]:
    """Yield what masks switch off: a site's name, the name of a tensor of its in a layout, and the elements of that."""
    for name, bits in masks.bits.items():
        if not bits.num_off:
            continue
        off = torch.from_numpy(bits.off())
        for span in spans(sites[name], layout):
            yield name, span.tensor, _elements(span, off, bits.shape)


def read_in_force(
    masks: MaskSet,
    where: Iterable[tuple[str, str, Elements]],
    on: Callable[[str, Elements], torch.Tensor | None],
) -> MaskSet:
    """Return which of the masked bits are really off: zero in every tensor of theirs.

    Args:
        masks: What should be off.
        where: The places of it, as `masked` yields them.
        on: Says for each row, column or element of a tensor, by its name, whether it is not all zero; None if that
            cannot be read, which counts as on.
    """
    kept: dict[str, Keep] = {}
    for site, name, elements in where:
        keep, off, found = kept.setdefault(site, masks[site]), masks.bits[site].off(), on(name, elements)
        keep.flat[off] = True if found is None else keep.flat[off] | found.cpu().numpy()
    return MaskSet(kept)


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the elements of a mask, and the bits among which theirs are."""

    tensor: torch.Tensor
    elements: Elements
    bits: torch.Tensor
    where: Elements
    """What reads theirs from these bits."""

    def fill_(self) -> None:
        """Switch off."""
        self.elements.fill_(as_bits(self.tensor))

    def restore_(self) -> None:
        """Put back; without a copy of all that is put back, for which there may be no memory."""
        copy_(as_bits(self.tensor), self.elements, self.bits, self.where)


@dataclass(frozen=True, eq=False)
class Swap:
    """New masks in the place of old ones. What both switch off is never written, so it is never on in between."""

    writes: tuple[Write, ...]
    """The new masks, in the order of their places."""
    off: tuple[Part, ...]
    """Elements that the new masks alone switch off."""
    on: tuple[Part, ...]
    """Elements that the old masks alone switched off."""

    @classmethod
    def of(cls, old: Sequence[Write], new: Sequence[Place]) -> "Swap":
        """Plan it, and save what has to be; only masked elements are read, however large their tensors are."""
        was, will_be = by_memory(old), by_memory(new)
        writes: dict[Place, Write] = {}
        off: list[Part] = []
        on: list[Part] = []
        for memory in dict.fromkeys((*was, *will_be)):
            before, after = was.get(memory, []), will_be.get(memory, [])
            shared = [[common(place.elements, write.elements, write.width) for write in before] for place in after]
            for place, with_old in zip(after, shared, strict=True):
                writes[place] = Write.over(place, before, with_old)
                off.append(writes[place].without(here for here, _ in with_old))
            for n, write in enumerate(before):
                on.append(write.without(with_old[n][1] for with_old in shared))
        return cls(tuple(writes[place] for place in new), _not_empty(off), _not_empty(on))

    def do_(self) -> None:
        """Write; first what is switched off."""
        for part in self.off:
            part.fill_()
        for part in self.on:
            part.restore_()

    def undo_(self) -> None:
        """Put back what was there, from wherever `do_` stopped."""
        for part in self.on:
            part.fill_()
        for part in self.off:
            part.restore_()


def _not_empty(parts: Sequence[Part]) -> tuple[Part, ...]:
    return tuple(part for part in parts if len(part.elements))


def by_memory(places: Iterable[_Place]) -> dict[Hashable, list[_Place]]:
    """Gather places whose tensors are in the same memory."""
    found: dict[Hashable, list[_Place]] = {}
    for place in places:
        found.setdefault(_memory(place), []).append(place)
    return found


def _memory(place: Place) -> Hashable:
    """Which memory a place is in: two names may share a tensor, and two tensors their memory."""
    tensor = place.tensor
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _elements(span: Span, off: torch.Tensor, shape: tuple[int, ...]) -> Elements:
    """The masked rows, columns or elements in the span's tensor. A row of a weight site is a row of the tensor."""
    return Points(off + span.start * shape[1]) if len(shape) == 2 else Lines(span.axis, off + span.start)


def joined(parts: Sequence[tuple[Elements, torch.Tensor]]) -> tuple[Elements, torch.Tensor]:
    """Join elements of one kind that share none, at least one part, with what was read of each.

    Examples:
        >>> one = Points(torch.tensor([1, 4])), torch.tensor([10, 40])
        >>> other = Points(torch.tensor([2])), torch.tensor([20])
        >>> elements, read = joined([one, other])
        >>> elements.places.tolist(), read.tolist()
        ([1, 2, 4], [10, 20, 40])
    """
    kinds = [kind_of(elements) for elements, _ in parts]
    axis = kinds[0][0]
    numbers, order = torch.cat([numbers for _, numbers in kinds]).sort()
    read = torch.cat([read for _, read in parts], dim=axis or 0)
    return elements_of(axis, numbers), read.index_select(axis or 0, order.to(read.device))


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor's bits as integers: zero is zero in every float format, and NaN is copied like any other value."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()])


def put_(transformer: torch.nn.Module, name: str, parameter: torch.Tensor) -> None:
    """Give a layer another parameter, by its name in the transformer."""
    layer, _, own = name.rpartition(".")
    setattr(transformer.get_submodule(layer), own, parameter)


def set_width_(transformer: torch.nn.Module, site: Site, width: int) -> None:
    """Tell the layers of a feed-forward, and the block around it, how many neurons it has. Parameters stay."""
    for axis in axes(site):
        layer: Any = transformer.get_submodule(axis.tensor.rpartition(".")[0])
        setattr(layer, ("out_features", "in_features")[axis.number], axis.size(width))
        # What diffusers splits this axis by for tensor parallelism; the site's pieces are the last.
        blocks = vars(layer).get(("_tp_packed_col_blocks", "_tp_packed_row_blocks")[axis.number])
        if blocks is not None:
            blocks[-axis.pieces :] = [width] * axis.pieces
    block: Any = transformer.get_submodule(site.fqn)
    for module in block.modules():
        if "mlp_hidden_dim" in vars(module):  # FLUX.2's fused layers split their output by it
            module.mlp_hidden_dim = width
