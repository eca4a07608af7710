"""The tensors that switches write to, as the last of them left these."""

from collections.abc import Iterable
from operator import attrgetter, is_

import torch

from safeflux.model.watch.parts import named_parts

_VERSION = attrgetter("_version")
_POINTER = torch.Tensor.data_ptr


class Held:
    """Whether tensors are where they were, and nobody but a switch wrote to them."""

    def __init__(self, transformer: torch.nn.Module, written: Iterable[torch.Tensor]) -> None:
        """Find where a transformer holds the tensors that are written to, and note them."""
        ids = {id(tensor) for tensor in written}
        found = [
            (module._parameters, leaf, tensor)
            for module in named_parts(transformer).values()
            for leaf, tensor in list(module._parameters.items())
            if tensor is not None and id(tensor) in ids
        ]
        self._owners = [owner for owner, _, _ in found]
        self._leaves = [leaf for _, leaf, _ in found]
        self._tensors = [tensor for _, _, tensor in found]
        self._distinct = list({id(tensor): tensor for tensor in self._tensors}.values())
        self.note()

    def note(self) -> None:
        """Take what is there now for their own state."""
        self._pointers = list(map(_POINTER, self._tensors))
        self._are_counted = not any(map(torch.Tensor.is_inference, self._tensors))  # such a one counts no writes
        self._versions = sum(map(_VERSION, self._distinct)) if self._are_counted else 0

    def count(self, writes: int) -> None:
        """Take so many writes to them for their own state: who wrote them knows what is there now."""
        self._versions += writes

    def are_as_left(self) -> bool:
        """Whether nothing was put in their place, moved or written to since; versions only grow."""
        return (
            self._are_counted
            and all(map(is_, map(dict.get, self._owners, self._leaves), self._tensors))
            and list(map(_POINTER, self._tensors)) == self._pointers
            and sum(map(_VERSION, self._distinct)) == self._versions
        )
