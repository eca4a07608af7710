"""A module's parts and parameters, listed while another thread may be drawing with it.

cache-dit puts blocks of its own into a transformer, which hold the transformer, while it draws, and takes them out
again. Torch's own walks may meet that halfway: they never end in a module that is a part of itself, and break off
where a dictionary changes under them. These do neither. They see the parts that stand there when nothing is drawn: what
was noted before, for what is one of the stand-ins that the forward of cache-dit holds.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch

from safeflux.errors import ModelError
from safeflux.model.watch.known import home_of, reached_by

_Parts = dict[str, torch.nn.Module | None]
_NOTED: WeakKeyDictionary[torch.nn.Module, dict[str, ref[torch.nn.Module]]] = WeakKeyDictionary()
"""The parts of modules when nothing was drawn; whoever draws or owns the module keeps them alive."""


def named_parts(root: torch.nn.Module, prefix: str = "") -> dict[str, torch.nn.Module]:
    """Return a module and all its parts by name, each once, in the order of `named_modules`."""
    found, seen, left = {}, set(), [(prefix, root)]
    while left:
        name, module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        found[name] = module
        if module._modules:  # most have none
            left += reversed(list(_inside(name, module)))
    return found


def named_parameters(root: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return every parameter by name, tied ones under each of their names.

    Raises:
        ModelError: The module is a part of itself at the moment.
    """
    found: dict[str, torch.nn.Parameter] = {}
    left: list[tuple[str, torch.nn.Module, tuple[torch.nn.Module, ...]]] = [("", root, ())]
    while left:
        path, module, around = left.pop()
        if module in around:
            raise part_of_itself()
        held = list(module._parameters.items())
        found |= {_joined(path, leaf): parameter for leaf, parameter in held if parameter is not None}
        if module._modules:
            left += reversed([(name, part, (*around, module)) for name, part in _inside(path, module)])
    return found


def children(module: torch.nn.Module) -> _Parts:
    """Return the direct parts of a module by name; while cache-dit draws with it, those that were noted before."""
    now = dict(module._modules)  # at once, before another thread changes it
    if has_cache_dit(module) and (noted := _NOTED.get(module)):
        replaced = _stand_ins(module)
        for name, part in noted.items():
            if name not in now or now[name] in replaced:  # between two blocks there is none for a moment
                now[name] = part()
    return now


def note_children(module: torch.nn.Module) -> None:
    """Remember the direct parts of a module, for as long as cache-dit draws with it; nothing while it does.

    Raises:
        ModelError: It does, and nothing was noted before.
    """
    now = dict(module._modules)
    if has_cache_dit(module):
        noted, replaced = _NOTED.get(module), _stand_ins(module)
        if not replaced.isdisjoint(now.values()) and not noted:
            raise part_of_itself()
        if noted and not (noted.keys() <= now.keys() and replaced.isdisjoint(now.values())):
            return
    _NOTED[module] = {name: ref(part) for name, part in now.items() if part is not None}


def check_whole(module: torch.nn.Module) -> None:
    """Make sure that a module's parts are in their places, so that they can be written to.

    Raises:
        ModelError: cache-dit draws a picture with it.
    """
    if dict(module._modules) != children(module):
        raise part_of_itself()
    note_children(module)


def has_cache_dit(module: torch.nn.Module) -> bool:
    """Whether cache-dit may put blocks of its own into a module while it draws."""
    return cache_dit_in(vars(module)) is not None


def cache_dit_in(own: Mapping[str, Any]) -> Any:
    """Return what cache-dit keeps of a picture among the attributes of a module, or None."""
    contexts = own.get("_context_manager")
    return contexts if contexts is not None and home_of(type(contexts)).startswith("cache_dit.") else None


def is_of_cache_dit(module: torch.nn.Module) -> bool:
    """Whether a module is one of cache-dit's own blocks."""
    return home_of(type(module)).startswith("cache_dit.")


def _stand_ins(module: torch.nn.Module) -> set[torch.nn.Module | None]:
    """What the forward of cache-dit puts in the place of a module's blocks: lists of its own blocks, or empty ones."""
    held = [each for each in reached_by(vars(module).get("forward")) if type(each) is torch.nn.ModuleList]
    return {each for each in held if all(map(is_of_cache_dit, each))}


def part_of_itself() -> ModelError:
    """The error for a model that cannot be written to, or whose weights cannot be found by name, at the moment."""
    return ModelError(
        "the model is a part of itself at the moment: cache-dit is drawing a picture with it. Try again after "
        "that; with several threads draw inside of the handle's `drawing()`."
    )


def _inside(path: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    return ((_joined(path, leaf), part) for leaf, part in children(module).items() if part is not None)


def _joined(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf
