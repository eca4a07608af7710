"""Whether a module is still the one that was read: the same code, parts and tensors, nothing written to them.

Reads no weights, so that it can be asked before every picture: objects are compared by identity, dictionaries by a
version, tensors by where they lie and by the version that torch counts at each write. Not seen, since it counts
nowhere: a write through `Tensor.data`, through shared memory or `Tensor.numpy()`. Reading finds these
(`verify(deep=True)`). Tensors that were made in `torch.inference_mode()` have no version, so that a module that holds
one is never unchanged.
"""

import os
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import torch

from safeflux.model.forward_values import Values
from safeflux.model.watch.attributes import Classes, Contents, Holders, are_same
from safeflux.model.watch.called import Insides, Places, called_classes
from safeflux.model.watch.compilers import stance
from safeflux.model.watch.dispatch import foreign_modes, num_registered
from safeflux.model.watch.forward import HOOKS, Makers, global_hooks
from safeflux.model.watch.hooks import held_by_hook, hooks_of, references_of
from safeflux.model.watch.parts import children, has_cache_dit, is_of_cache_dit

_PART_NAMES = ("_parameters", "_buffers", "_modules", *HOOKS)
_FIXED = {*_PART_NAMES, "weights_map"}
_PARTS = itemgetter(*_PART_NAMES)
_VERSION = attrgetter("_version")
_POINTER = torch.Tensor.data_ptr


class Snapshot:
    """What makes a module's next output at the moment when this is made."""

    def __init__(self, root: torch.nn.Module, now: Values | None = None, drawn: torch.nn.Module | None = None) -> None:
        """Note code, parts and parameters of `root`, and pointer and version of every tensor that forward reads.

        Args:
            root: The module.
            now: Where its weights are held, if that is known already.
            drawn: What a pipeline draws with, if not with `root` itself (`Makers`).
        """
        self.drawn = root if drawn is None else drawn
        # What is compared is held, or another object could come to lie where it lay.
        now = now or Values(root)
        self.makers = Makers(root, drawn, now.modules)
        modules = list(self.makers.modules.values())
        owns = list(map(vars, modules))
        processors = [processor for own in owns if (processor := own.get("processor")) is not None]
        self._children = [(m, children(m)) for m in modules if has_cache_dit(m)]
        drawing = {id(m._modules) for m, _ in self._children}
        parts = [part for part in chain.from_iterable(map(_PARTS, owns)) if id(part) not in drawing]
        # cache-dit counts its steps on the model, on lists of blocks and on its own blocks.
        kinds = (torch.nn.ModuleList,) if self._children else ()
        counting = {m for m in modules if type(m) in kinds or is_of_cache_dit(m) or has_cache_dit(m)}
        self._counting = [(vars(m), _fixed(vars(m))) for m in counting]
        hooks = [hook for own in owns for hook in hooks_of(own) if hasattr(hook, "__dict__")]
        self._counting += [(vars(hook), _fixed(vars(hook))) for hook in hooks]
        helpers = [each for each in processors if hasattr(each, "__dict__")]
        helpers += [reference for own in owns for reference in references_of(own)]
        self._holders = Holders([*modules, *helpers, *hooks])
        self._classes = Classes([*self.makers.classes, *called_classes()])
        held = [own for m, own in zip(modules, owns, strict=True) if m not in counting]
        held += [*(vars(each) for each in helpers), *filter(None, parts), *self._classes.dicts]
        held += [each for hook in hooks for each in held_by_hook(hook)]
        are_dicts = all(isinstance(each, dict) for each in held)
        self._contents = Contents(held if are_dicts else [])
        self._empty = [part for part in parts if not part]
        # Fusing an adapter writes through `.data`; PEFT keeps a list of what is fused, and the scale of each.
        self._fused = [(layer, list(layer.merged_adapters), _scales(layer)) for layer in _fusing(modules)]
        self._called, self._insides = Places(self.makers.calls), Insides(self.makers.functions)
        self._global = [*global_hooks(), stance()]
        self._num_registered = num_registered()
        tensors = now.sources()
        has_versions = not any(map(torch.Tensor.is_inference, tensors))
        self._can_tell = are_dicts and has_versions
        self._tensors = tensors
        self._tensor_types = list(map(type, tensors))
        self._pointers = list(map(_POINTER, tensors)) if has_versions else []
        self._versions = sum(map(_VERSION, tensors)) if has_versions else 0
        self._files = {path: _stamp(path) for path in now.files}

    def is_unchanged(self) -> bool:
        """Whether all of it is the same, and nothing was written to."""
        try:
            return self._can_tell and self._are_parts_unchanged() and self._are_tensors_unchanged()
        except (RuntimeError, TypeError, ValueError, KeyError, OSError):  # parts that cannot be compared are others
            return False

    def count(self, writes: int) -> None:
        """Take so many writes to these tensors for their own state: who wrote them knows what is there now."""
        self._versions += writes

    def _are_parts_unchanged(self) -> bool:
        return (
            self._holders.are_unchanged()
            and self._classes.inherit_the_same()
            and self._contents.are_unchanged()
            and not any(self._empty)
            and all(are_same(_fixed(own), then) for own, then in self._counting)
            and all(m._modules == parts or children(m) == parts for m, parts in self._children)
            and all(layer.merged_adapters == names and _scales(layer) == was for layer, names, was in self._fused)
            and self._called.are_unchanged()
            and self._insides.are_unchanged()
            and are_same([*global_hooks(), stance()], self._global)
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


def _fixed(own: dict[str, Any]) -> list[object]:
    """What does not move in a module or hook that counts in its attributes while it draws."""
    return [held for name, held in own.items() if name in _FIXED or callable(held)]


def _fusing(modules: Iterable[torch.nn.Module]) -> list[Any]:
    return [m for m in modules if "merged_adapters" in vars(m)]


def _scales(layer: Any) -> dict[str, float]:
    return dict(getattr(layer, "scaling", {}))


def _stamp(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns
