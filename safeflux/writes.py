"""Where masks touch the tensors of a loaded model, and the bits that are there: what is planned, saved and written.

Bits are handled as integers: zero is zero in every float format, and NaN is copied like any other value.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from safeflux.elements import Elements, Lines, Points, off_places
from safeflux.masks import MaskSet, check_fit
from safeflux.sites import Span, find_sites, spans
from safeflux.weights import check_plain, named_weights

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

    def fill_(self) -> None:
        """Switch off."""
        self.elements.fill_(as_bits(self.tensor))

    def restore_(self) -> None:
        """Put back what was there, and what was added on top since."""
        self.elements.put_(as_bits(self.tensor), self._restored())

    def _restored(self) -> torch.Tensor:
        return self.saved if self.added is None else as_bits(self.saved.view(self.dtype) + self.added)

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


def places(transformer: torch.nn.Module, masks: MaskSet) -> Iterator[Place]:
    """Check everything; yield all that is to be masked. Sites may share elements, so saving ends before writing."""
    sites = find_sites(transformer)
    check_fit(masks, sites)
    weights = named_weights(transformer)
    for name, bits in masks.bits.items():
        if not bits.num_off:
            continue
        off = torch.from_numpy(bits.off())
        for span in spans(sites[name]):
            tensor = weights[span.tensor]
            check_plain(span.tensor, tensor)
            yield Place(name, span.tensor, tensor, _elements(span, off, bits.shape))


@dataclass(frozen=True, eq=False)
class Change:
    """Elements of one tensor that a swap writes, and their bits before and after."""

    tensor: torch.Tensor
    elements: Elements
    before: torch.Tensor
    after: torch.Tensor

    def write_(self, bits: torch.Tensor) -> None:
        """Write one of the two."""
        self.elements.put_(as_bits(self.tensor), bits)


def differences(old: Sequence[Write], new: Sequence[Place]) -> tuple[tuple[Write, ...], list[Change]]:
    """What to save for new masks, and what to write for them where old ones are; copies one tensor at a time."""
    # By object, not by name: two names may share a tensor.
    by_tensor: dict[int, tuple[list[Write], list[Place]]] = {id(place.tensor): ([], []) for place in (*old, *new)}
    for write in old:
        by_tensor[id(write.tensor)][0].append(write)
    for place in new:
        by_tensor[id(place.tensor)][1].append(place)
    writes, changes = [], []
    for was, will_be in by_tensor.values():
        tensor = (*was, *will_be)[0].tensor
        now = as_bits(tensor)
        original = now.clone()
        for write in was:
            write.elements.put_(original, write.saved)
        after = original.clone()
        for place in will_be:
            writes.append(Write.of(place, original))
            place.elements.fill_(after)
        differ = Points(off_places((after == now).cpu()))
        if differ.places.numel():
            changes.append(Change(tensor, differ, differ.read(now), differ.read(after)))
    return tuple(writes), changes


def _elements(span: Span, off: torch.Tensor, shape: tuple[int, ...]) -> Elements:
    """The masked rows, columns or elements in the span's tensor. A row of a weight site is a row of the tensor."""
    return Points(off + span.start * shape[1]) if len(shape) == 2 else Lines(span.axis, off + span.start)


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor's bits as integers: zero is zero in every float format, and NaN is copied like any other value."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()])
