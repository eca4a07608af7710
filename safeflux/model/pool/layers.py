"""The masks of several policies, split where they differ: what a switch from one to another writes, and no more.

A layer is a set of masked elements of one tensor that the same policies switch off, with the bits that they had. No two
layers share an element, so that any of them is written without a look at the others. What all policies switch off is a
layer that no switch touches.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from safeflux.errors import ApplyError
from safeflux.masks.mask_set import MaskSet
from safeflux.model.adapters import check_unfused
from safeflux.model.forward_values import Values
from safeflux.model.index_sets import Lines, Points, split
from safeflux.model.watch.parts import named_parts
from safeflux.model.writes import Place, Write, as_bits, by_memory, places


@dataclass(frozen=True, eq=False)
class Layer:
    """Masked elements of one tensor with the bits that they had, and the policies that switch them off."""

    write: Write
    policies: frozenset[str]

    @property
    def num_bytes(self) -> int:
        """What it keeps in memory: the saved bits, and where they belong."""
        elements = self.write.elements
        assert isinstance(elements, Lines | Points)
        return self.write.saved.nbytes + (elements.numbers if isinstance(elements, Lines) else elements.places).nbytes


class Layers:
    """All layers of some policies on one model."""

    def __init__(self, transformer: torch.nn.Module, masks: Mapping[str, MaskSet]) -> None:
        """Split, and save what is there; writes nothing.

        Args:
            transformer: A FLUX transformer of diffusers on which none of the masks is in force.
            masks: What each policy switches off, by its name in the pool; at most `index_sets.MOST_SETS`.

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
        self._held = _hold(transformer, self.all)
        self.hold()

    @property
    def num_bytes(self) -> int:
        """What the policies' differences take in memory."""
        return sum(layer.num_bytes for layer in self.all if len(layer.policies) < self._num_policies)

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
            do=[*(self._fill[write] for write in off), *(self._restore[write] for write in on)],
            back=[*(self._fill[write] for write in on), *(self._restore[write] for write in off)],
            off=off,
            on=on,
            written=Counter(self._held[id(write.tensor)] for write in (*off, *on)),
        )

    def are_held(self) -> bool:
        """Whether all tensors are where they were, and nobody but a switch wrote to them."""
        return all(held.is_as_left() for held in self._held.values())

    def hold(self) -> None:
        """Note where the tensors are and that nobody has written to them up to now, and make the writes ready."""
        for held in self._held.values():
            held.note()
        writes = [(layer.write, as_bits(layer.write.tensor)) for layer in self.all]
        self._fill = {write: write.elements.filling(bits) for write, bits in writes}
        self._restore = {write: write.elements.putting(bits, write.saved) for write, bits in writes}
        self._changes: dict[tuple[str, str], Change] = {}


@dataclass(frozen=True, eq=False)
class Change:
    """What a switch of policies writes."""

    do: Sequence[Callable[[], object]]
    """First what the new policy alone switches off, then what the old one alone did."""
    back: Sequence[Callable[[], object]]
    """The other way round."""
    off: Sequence[Write]
    """What the new policy alone switches off."""
    on: Sequence[Write]
    """What the old one alone switches off."""
    written: Mapping["_Held", int]
    """How often each tensor is written to."""

    def count(self) -> int:
        """Note that it was done, and return how many writes it has."""
        for held, times in self.written.items():
            held.count(times)
        return len(self.do)


class _Held:
    """One tensor that switches write to, as the last of them left it."""

    __slots__ = ("leaf", "owner", "pointer", "tensor", "version")

    def __init__(self, owner: dict[str, Any], leaf: str, tensor: torch.Tensor) -> None:
        self.owner, self.leaf, self.tensor = owner, leaf, tensor
        self.note()

    def note(self) -> None:
        self.pointer = self.tensor.data_ptr()
        self.version = None if self.tensor.is_inference() else self.tensor._version  # such a one counts no writes

    def count(self, times: int) -> None:
        if self.version is not None:
            self.version += times

    def is_as_left(self) -> bool:
        return (
            self.version is not None
            and self.owner.get(self.leaf) is self.tensor
            and self.tensor.data_ptr() == self.pointer
            and self.tensor._version == self.version
        )


def _hold(transformer: torch.nn.Module, layers: Iterable[Layer]) -> dict[int, _Held]:
    written = {id(layer.write.tensor) for layer in layers}
    return {
        id(tensor): _Held(module._parameters, leaf, tensor)
        for module in named_parts(transformer).values()
        for leaf, tensor in list(module._parameters.items())
        if tensor is not None and id(tensor) in written
    }


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
