"""The masks of several policies, split where they differ: what a switch from one to another writes, and no more.

A layer is a set of masked elements of one tensor that the same policies switch off, with the bits that they had. No two
layers share an element, so that any of them is written without a look at the others. What all policies switch off is a
layer that no switch touches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from safeflux.errors import ApplyError
from safeflux.masks.mask_set import MaskSet
from safeflux.model.adapters import check_unfused
from safeflux.model.forward_values import Values
from safeflux.model.index_sets import Elements, Lines, Points, elements_of, kind_of
from safeflux.model.pool.held import Held
from safeflux.model.writes import Place, Write, as_bits, by_memory, places

MOST_SETS = 64
"""How many sets `split` tells apart."""
_SMALL = 2048
"""Up to so many elements a write is joined with others to its tensor."""
_MOST_JOINED = 1 << 20
"""Bytes that all joined writes of a pool take at most."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Masked elements of one tensor with the bits that they had, and the policies that switch them off."""

    write: Write
    policies: frozenset[str]

    @property
    def num_bytes(self) -> int:
        """What it keeps in memory: the saved bits, and where they belong."""
        return _num_bytes(self.write)


class Layers:
    """All layers of some policies on one model."""

    def __init__(self, transformer: torch.nn.Module, masks: Mapping[str, MaskSet]) -> None:
        """Split, and save what is there; writes nothing.

        Args:
            transformer: A FLUX transformer of diffusers on which none of the masks is in force.
            masks: What each policy switches off, by its name in the pool; at most `MOST_SETS`.

        Raises:
            SafeFluxError: The errors of `apply_masks_`.
        """
        with torch.no_grad():
            masked = {name: list(places(transformer, one)) for name, one in masks.items()}
            self.shapes = {place.name: place.tensor.shape for each in masked.values() for place in each}
            """Of every tensor that a policy masks."""
            check_unfused(transformer, list(self.shapes))
            self.all = tuple(_split(masked))
        self._num_policies = len(masks)
        self._num_bytes_joined = 0
        self._held = Held(transformer, [layer.write.tensor for layer in self.all])
        self.hold()

    @property
    def num_bytes(self) -> int:
        """What the policies' differences take in memory."""
        layers = sum(layer.num_bytes for layer in self.all if len(layer.policies) < self._num_policies)
        return layers + self._num_bytes_joined

    def of(self, policy: str) -> tuple[Write, ...]:
        """All that one policy switches off."""
        return tuple(layer.write for layer in self.all if policy in layer.policies)

    def change(self, old: str, new: str) -> "Change":
        """What a switch writes; to be asked for anew after `hold`."""
        found = self._changes.get((old, new))
        if found is None:
            found = self._changes[old, new] = self._change(old, new)
        return found

    def _change(self, old: str, new: str) -> "Change":
        off = [layer.write for layer in self.all if new in layer.policies and old not in layer.policies]
        on = [layer.write for layer in self.all if old in layer.policies and new not in layer.policies]
        return Change(
            do=[*map(self._filling, self._joined(off)), *map(self._putting, self._joined(on))],
            back=[*map(self._filling, on), *map(self._putting, off)],
            off=off,
            on=on,
        )

    def _joined(self, writes: Sequence[Write]) -> Iterator[Write]:
        """Join small writes to the same tensor, which cost more to begin than to do; a bounded number of bytes."""
        by_tensor: dict[int, list[Write]] = {}
        for write in writes:
            by_tensor.setdefault(id(write.tensor), []).append(write)
        for each in by_tensor.values():
            small = [write for write in each if write.saved.numel() <= _SMALL]
            size = sum(map(_num_bytes, small))
            if len(small) > 1 and self._num_bytes_joined + size <= _MOST_JOINED:
                self._num_bytes_joined += size
                yield small[0].joined(small[1:])
                each = [write for write in each if write.saved.numel() > _SMALL]
            yield from each

    def _filling(self, write: Write) -> Callable[[], object]:
        return self._fill.get(write) or write.elements.filling(as_bits(write.tensor))

    def _putting(self, write: Write) -> Callable[[], object]:
        return self._restore.get(write) or write.elements.putting(as_bits(write.tensor), write.saved)

    def are_held(self) -> bool:
        """Whether all tensors are where they were, and nobody but a switch wrote to them."""
        return self._held.are_as_left()

    def count(self, writes: int) -> None:
        """Take so many writes to the tensors for those of a switch."""
        self._held.count(writes)

    def hold(self) -> None:
        """Note where the tensors are and that nobody has written to them up to now, and make the writes ready."""
        self._held.note()
        writes = [(layer.write, as_bits(layer.write.tensor)) for layer in self.all]
        self._fill = {write: write.elements.filling(bits) for write, bits in writes}
        self._restore = {write: write.elements.putting(bits, write.saved) for write, bits in writes}
        self._changes: dict[tuple[str, str], Change] = {}
        self._num_bytes_joined = 0


@dataclass(frozen=True, eq=False)
class Change:
    """What a switch of policies writes."""

    do: Sequence[Callable[[], object]]
    """First what the new policy alone switches off, then what the old one alone did; each writes once."""
    back: Sequence[Callable[[], object]]
    """The other way round."""
    off: Sequence[Write]
    """What the new policy alone switches off."""
    on: Sequence[Write]
    """What the old one alone switches off."""


def _num_bytes(write: Write) -> int:
    elements = write.elements
    assert isinstance(elements, Lines | Points)
    return write.saved.nbytes + (elements.numbers if isinstance(elements, Lines) else elements.places).nbytes


def _split(masked: Mapping[str, list[Place]]) -> Iterator[Layer]:
    """Split the places of all policies, tensor by tensor; a tensor with two names has each layer under both."""
    names = list(masked)
    number_of = {place: number for number, each in enumerate(masked.values()) for place in each}
    for together in by_memory(number_of).values():
        tensors = {place.name: place.tensor for place in together}
        shape = together[0].tensor.shape
        for sign, elements in split([(number_of[place], place.elements) for place in together], shape):
            policies = frozenset(name for number, name in enumerate(names) if sign >> number & 1)
            for name, tensor in tensors.items():
                # of no site alone: those of several policies may meet in it
                yield Layer(Write.of(Place("", name, tensor, elements), as_bits(tensor)), policies)


def check_put_back(layers: Iterable[Write], now: Values) -> None:
    """Make sure that layers which are not switched off now still have the bits that were saved of them.

    Args:
        layers: What is on.
        now: Where the weights are held.

    Raises:
        ApplyError: One has other bits, so that its saved ones would land among new ones.
    """
    for write in layers:
        if not now.are_in(write.name, write.tensor) or write.tensor.dtype != write.dtype or not _are_saved(write):
            raise ApplyError(
                f"cannot switch: {write.name} was moved, cast or written to since the pool was made, so that old "
                "weights would land among new ones: nothing was written. Reverse that change, or close the pool and "
                "make it anew."
            )


def _are_saved(write: Write) -> bool:
    bits = write.elements.read(as_bits(write.tensor))
    return torch.equal(bits, write.saved.to(bits.device))


def split(sets: Sequence[tuple[int, Elements]], shape: Sequence[int]) -> Iterator[tuple[int, Elements]]:
    """Split sets of one tensor's elements where they differ, so that no two parts share an element.

    Lines stay lines where all are of one axis. Otherwise, since lines cross, every part is of single elements.

    Args:
        sets: Each with its number, below `MOST_SETS`; several may have the same.
        shape: The tensor's.

    Yields:
        The sets that a part is in, as bits of an integer (1 << number), and the part.

    Examples:
        >>> parts = split([(0, Lines(0, torch.tensor([1, 4]))), (1, Lines(0, torch.tensor([4, 5])))], (8, 8))
        >>> [(sets, part.numbers.tolist()) for sets, part in parts]
        [(1, [1]), (2, [5]), (3, [4])]
    """
    axes = {kind_of(elements)[0] for _, elements in sets}
    axis = axes.pop() if len(axes) == 1 else None
    signs = np.zeros(int(np.prod(shape)) if axis is None else shape[axis], dtype=np.uint64)
    by_row = signs.reshape(shape[0], -1) if axis is None else signs
    for number, elements in sets:
        kind, numbers = kind_of(elements)
        target = signs if kind == axis else by_row if kind == 0 else by_row.T
        target[numbers.numpy()] |= np.uint64(1 << number)
    where = np.flatnonzero(signs)
    found = signs[where]
    for sign in np.unique(found):
        yield int(sign), elements_of(axis, torch.from_numpy(where[found == sign]))
