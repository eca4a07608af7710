"""Whether a module is still the one that was looked at: the same parts, the same tensors, nothing written to them.

Reads no weights, so that it can be asked before every picture. A write through `Tensor.data` counts nowhere and is not
seen: torch keeps no version for it.
"""

from collections.abc import Iterable, Mapping
from operator import is_
from typing import Any

import torch

_Part = tuple[Mapping[str, object], list[object]]


class Watch:
    """What identifies a module and some of its tensors at the moment when this is made."""

    def __init__(self, root: torch.nn.Module, tensors: Iterable[torch.Tensor]) -> None:
        """Note all parts and parameters of `root`, and pointer and version of the tensors."""
        modules = list(root.modules())
        # What is compared is held, or another object could come to lie where it lay.
        self._parts: list[_Part] = [(m._modules, list(m._modules.values())) for m in modules if m._modules]
        self._parts += [(m._parameters, list(m._parameters.values())) for m in modules if m._parameters]
        # Fusing an adapter writes through `.data`; PEFT keeps a list of what is fused.
        layers: list[Any] = [m for m in modules if hasattr(m, "merged_adapters")]
        self._fused = [(layer, list(layer.merged_adapters)) for layer in layers]
        self._tensors = [(t, t.data_ptr(), t._version) for t in {id(t): t for t in tensors}.values()]

    def is_unchanged(self) -> bool:
        """Whether every part and parameter is the same object, and the tensors the same bytes, never written to."""
        return (
            all(len(now) == len(then) and all(map(is_, now.values(), then)) for now, then in self._parts)
            and all(t.data_ptr() == pointer and t._version == version for t, pointer, version in self._tensors)
            and all(layer.merged_adapters == names for layer, names in self._fused)
        )
