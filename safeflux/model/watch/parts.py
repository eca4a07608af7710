"""A module's parts and parameters, listed while another thread may be drawing with it.

cache-dit puts blocks of its own into a transformer, which hold the transformer, while it draws, and takes them out
again. Torch's own walks may meet that halfway: they never end in a module that is a part of itself, and break off
where a dictionary changes under them. These do neither.
"""

from collections.abc import Iterator

import torch

from safeflux.errors import ModelError


def named_parts(root: torch.nn.Module, prefix: str = "") -> dict[str, torch.nn.Module]:
    """Return a module and all its parts by name, each once, in the order of `named_modules`."""
    found, seen, left = {}, set(), [(prefix, root)]
    while left:
        name, module = left.pop()
        if module not in seen:
            seen.add(module)
            found[name] = module
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
        left += reversed([(name, part, (*around, module)) for name, part in _inside(path, module)])
    return found


def part_of_itself() -> ModelError:
    """The error for a module that is a part of itself, so that its weights cannot be found by name."""
    return ModelError(
        "the model is a part of itself at the moment: cache-dit draws a picture with it. Try again after "
        "that; with several threads draw inside of the handle's `drawing()`."
    )


def _inside(path: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    parts = list(module._modules.items())  # at once, before another thread changes it
    return ((_joined(path, leaf), part) for leaf, part in parts if part is not None)


def _joined(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf
