"""Whether a module is still the one that was read: the same code, parts and tensors, nothing written to them.

Reads no weights, so that it can be asked before every picture: objects are compared by identity, tensors by where they
lie and by the version that torch counts at each write. Not seen, since it counts nowhere: a write through
`Tensor.data`, through shared memory or `Tensor.numpy()`; nor is a replaced `__dict__` of a module. Reading finds these
(`verify(deep=True)`). Tensors that were made in `torch.inference_mode()` have no version, so that a module that holds
one is never unchanged.
"""

import os
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import torch
import torch.nn.modules.module as torch_module

from safeflux.model.forward_values import Values
from safeflux.model.watch.called import Insides, Places
from safeflux.model.watch.dispatch import foreign_modes, num_registered
from safeflux.model.watch.forward import HOOKS, OWN, Makers
from safeflux.model.watch.parts import children, has_cache_dit

_PARTS = [itemgetter(name) for name in ("_parameters", "_modules", *HOOKS)]
"""Each by itself: a tuple a module would be as many objects for the garbage collector to follow."""
_VERSION = attrgetter("_version")
_POINTER = torch.Tensor.data_ptr
_GLOBAL = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
_MISSING = object()


class Snapshot:
    """What makes a module's next output at the moment when this is made."""

    def __init__(self, root: torch.nn.Module, now: Values | None = None) -> None:
        """Note code, parts and parameters of `root`, and pointer and version of every tensor that forward reads.

        Args:
            root: The module.
            now: Where its weights are held, if that is known already.
        """
        # What is compared is held, or another object could come to lie where it lay.
        self.makers = Makers(root)
        modules = list(self.makers.modules.values())
        self._modules = modules
        self._types = list(map(type, modules))
        self._owns = [vars(m) for m in modules]
        self._sizes = list(map(len, self._owns))
        self._parts = [list(map(part, self._owns)) for part in _PARTS]
        every = list(chain.from_iterable(self._parts))
        self._children = [(m, children(m)) for m in modules if has_cache_dit(m)]
        others = {id(m._modules) for m, _ in self._children}
        within = (part for part in every if id(part) not in others)
        self._filled = [dict.values(part) for part in (*within, *(m._buffers for m in modules)) if part]
        self._held = list(chain.from_iterable(self._filled))
        self._empty = [part for part in every if not part]
        own = [(vars(m), name) for m in modules for name in OWN if name in vars(m)]
        # Two tensors of one element that are equal would pass for the same where lists are compared.
        own += [
            (m._parameters, leaf)
            for m in modules
            for leaf, p in m._parameters.items()
            if p is not None and p.numel() == 1
        ]
        self._own_of, self._own_names = [each[0] for each in own], [each[1] for each in own]
        self._own = [held[name] for held, name in own]
        # Fusing an adapter writes through `.data`; PEFT keeps a list of what is fused, and the scale of each.
        self._fused = [(layer, list(layer.merged_adapters), _scales(layer)) for layer in _fusing(modules)]
        kinds: list[Any] = list(dict.fromkeys(self._types))
        self._calls = [(kind, kind.forward, kind.__call__) for kind in kinds]
        processors = {type(held) for held, name in zip(self._own, self._own_names, strict=True) if name == "processor"}
        self._processors = [(kind, kind.__call__) for kind in processors]
        self._called, self._insides = Places(self.makers.calls), Insides(self.makers.functions)
        self._global = [list(hooks.values()) for hooks in _GLOBAL]
        self._num_registered = num_registered()
        values = now or Values(root)
        tensors = values.sources()
        self._has_versions = not any(map(torch.Tensor.is_inference, tensors))
        self._tensors = tensors
        self._tensor_types = list(map(type, tensors))
        self._pointers = list(map(_POINTER, tensors)) if self._has_versions else []
        self._versions = sum(map(_VERSION, tensors)) if self._has_versions else 0
        self._files = {path: _stamp(path) for path in values.files}

    def is_unchanged(self) -> bool:
        """Whether all of it is the same, and nothing was written to."""
        try:
            return self._has_versions and self._are_parts_unchanged() and self._are_tensors_unchanged()
        except (RuntimeError, TypeError, ValueError, KeyError, OSError):  # parts that cannot be compared are others
            return False

    def count(self, writes: int) -> None:
        """Take so many writes to these tensors for their own state: who wrote them knows what is there now."""
        self._versions += writes

    def _are_parts_unchanged(self) -> bool:
        own = self._own
        return (
            list(map(len, self._owns)) == self._sizes
            and all(list(map(part, self._owns)) == then for part, then in zip(_PARTS, self._parts, strict=True))
            and not any(self._empty)
            and list(chain.from_iterable(self._filled)) == self._held  # by identity first
            and all(m._modules == parts or children(m) == parts for m, parts in self._children)
            and list(map(type, self._modules)) == self._types
            and all(
                o.get(name, _MISSING) is was for o, name, was in zip(self._own_of, self._own_names, own, strict=True)
            )
            and all(kind.forward is forward and kind.__call__ is call for kind, forward, call in self._calls)
            and all(kind.__call__ is call for kind, call in self._processors)
            and all(layer.merged_adapters == names and _scales(layer) == was for layer, names, was in self._fused)
            and self._called.are_unchanged()
            and self._insides.are_unchanged()
            and [list(hooks.values()) for hooks in _GLOBAL] == self._global
            and num_registered() == self._num_registered
            and not any(foreign_modes())
        )

    def _are_tensors_unchanged(self) -> bool:
        return (
            sum(map(_VERSION, self._tensors)) == self._versions  # versions only grow
            and list(map(_POINTER, self._tensors)) == self._pointers
            and list(map(type, self._tensors)) == self._tensor_types
            and all(_stamp(path) == stamp for path, stamp in self._files.items())
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model has not been read."""
        return type(None), ()


def _fusing(modules: Iterable[torch.nn.Module]) -> list[Any]:
    return [m for m in modules if "merged_adapters" in vars(m)]


def _scales(layer: Any) -> dict[str, float]:
    return dict(getattr(layer, "scaling", {}))


def _stamp(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns
