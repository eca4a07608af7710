"""Where masks touch the tensors of a loaded model, and the bits that are there: what is planned, saved and written.

Bits are handled as integers: zero is zero in every float format, and NaN is copied like any other value.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from safeflux.masks import MaskSet, check_fit
from safeflux.sites import Span, find_sites, spans
from safeflux.weights import check_plain, named_weights

Index = tuple[slice | torch.Tensor, ...]
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Place:
    """The masked elements of one tensor that belong to one site."""

    site: str
    name: str
    tensor: torch.Tensor
    index: Index


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
        return cls(**vars(place), dtype=place.tensor.dtype, shape=place.tensor.shape, saved=bits[place.index])

    def fill_(self) -> None:
        """Switch off."""
        as_bits(self.tensor)[self.index] = 0

    def restore_(self) -> None:
        """Put back what was there, and what was added on top since."""
        as_bits(self.tensor)[self.index] = self._restored().to(self.tensor.device)

    def _restored(self) -> torch.Tensor:
        if self.added is None or not self.added.any():
            return self.saved
        return as_bits(self.saved.view(self.dtype) + self.added)

    def again(self, place: Place) -> "Write":
        """The same masked elements where the model has them now, together with what was written onto the zeros.

        What fusing an adapter adds, and takes away again, is added up: it is exact, since it lands on zeros. Bits that
        are those saved are the base model's, loaded again.
        """
        now = as_bits(place.tensor)[place.index].to(self.saved.device)
        moved = torch.where(now == self.saved, 0, now).view(self.dtype)
        added = moved if self.added is None else self.added + moved
        return replace(self, tensor=place.tensor, index=place.index, added=added if added.any() else None)

    def on(self, tensor: torch.Tensor) -> torch.Tensor:
        """Say for each masked row, column or element whether it is not all zero in a tensor."""
        nonzero = as_bits(tensor)[_on_device(self.index, tensor.device)] != 0
        if nonzero.dim() == 1:
            return nonzero
        return nonzero.any(dim=1 if isinstance(self.index[0], torch.Tensor) else 0)


def places(transformer: torch.nn.Module, masks: MaskSet) -> Iterator[Place]:
    """Check everything; yield all that is to be masked. Sites may share elements, so saving ends before writing."""
    sites = find_sites(transformer)
    check_fit(masks, sites)
    weights = named_weights(transformer)
    for name, mask in masks.items():
        off = (~mask).nonzero(as_tuple=True)
        if not off[0].numel():
            continue
        for span in spans(sites[name]):
            tensor = weights[span.tensor]
            check_plain(span.tensor, tensor)
            yield Place(name, span.tensor, tensor, _index(span, off, tensor.device))


@dataclass(frozen=True, eq=False)
class Change:
    """Elements of one tensor that a swap writes, and their bits before and after."""

    tensor: torch.Tensor
    index: Index
    before: torch.Tensor
    after: torch.Tensor

    def write_(self, bits: torch.Tensor) -> None:
        """Write one of the two."""
        as_bits(self.tensor)[self.index] = bits


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
            original[write.index] = write.saved.to(original.device)
        after = original.clone()
        for place in will_be:
            writes.append(Write.of(place, original))
            after[place.index] = 0
        index = (after != now).nonzero(as_tuple=True)
        if index[0].numel():
            changes.append(Change(tensor, index, now[index], after[index]))
    return tuple(writes), changes


def _index(span: Span, off: tuple[torch.Tensor, ...], device: torch.device) -> Index:
    """Index of the masked rows, columns or elements in the span's tensor."""
    first, *rest = (axis.to(device) for axis in off)
    if rest:
        return (first + span.start, *rest)
    return (slice(None), first + span.start) if span.axis == 1 else (first + span.start,)


def _on_device(index: Index, device: torch.device) -> Index:
    return tuple(part.to(device) if isinstance(part, torch.Tensor) else part for part in index)


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor's bits as integers: zero is zero in every float format, and NaN is copied like any other value."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()])
