"""What decides a module's output beside tensors and the choice of code: settings of its parts, and what functions hold.

A norm's `eps`, an attention's `heads`, the code inside of a function: changed in place they draw something else, and
nothing shows whether they are right. So they are noted at the guard, and compared by `verify(deep=True)`.
"""

import types
from collections.abc import Iterator
from typing import Any

import torch

from safeflux.model.watch.called import inside
from safeflux.model.watch.forward import Makers
from safeflux.model.watch.known import functions_in, method_in, name_of

_PLAIN = (bool, int, float, str, type(None), torch.dtype)
_FREE = {"training", "gradient_checkpointing", "fused_projections", "use_slicing", "use_tiling"}
"""Attributes that may change: they are for less memory or for training, or are watched elsewhere."""


class Settings:
    """Classes and settings of a module's parts, and the insides of all functions that make its output."""

    def __init__(self, makers: Makers) -> None:
        """Note them."""
        self._parts = {name: (type(part), dict(_attributes(part))) for name, part in _named(makers)}
        self._insides: dict[types.FunctionType, tuple[object, ...]] = {}
        self.add(makers)

    def add(self, makers: Makers) -> None:
        """Note functions that came since, such as those of a cache."""
        for function in _functions(makers):
            self._insides.setdefault(function, inside(function))

    def other_functions(self, makers: Makers) -> Iterator[str]:
        """Say which functions are made of something else now."""
        for function in _functions(makers):
            if self._insides.get(function, now := inside(function)) != now:
                yield f"the function {name_of(function)} has other code or defaults than at the guard"

    def other_parts(self, makers: Makers) -> Iterator[str]:
        """Say which parts are of another class now, or have other settings."""
        now: dict[str, list[torch.nn.Module]] = {}
        for name, part in _named(makers):
            now.setdefault(name, []).append(part)
        for name, (kind, settings) in self._parts.items():
            parts = now.get(name, [])
            if parts and not any(isinstance(part, kind) for part in parts):  # quantisers take classes below it
                yield f"module {name!r} was {name_of(kind)} at the guard, and is {name_of(type(parts[0]))}"
            for part in parts:
                if type(part) is kind:
                    yield from _differences(name, settings, dict(_attributes(part)))

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model may be read where the functions are others."""
        return {**vars(self), "_insides": {}}


def _named(makers: Makers) -> Iterator[tuple[str, torch.nn.Module]]:
    """Parts by their name in the base model; an adapter's layer has the name of the one that it was put around."""
    for name, part in makers.modules.items():
        yield (name or type(part).__name__).replace(".base_layer", ""), part


def _differences(name: str, then: dict[str, object], now: dict[str, object]) -> Iterator[str]:
    for setting, value in then.items():
        if setting not in now:
            yield f"module {name!r}: its {setting} was {value!r} at the guard, and is gone"
        elif [now[setting]] != [value]:  # a list, so that NaN is equal to itself
            yield f"module {name!r}: its {setting} was {value!r} at the guard, and is {now[setting]!r}"


def _attributes(module: torch.nn.Module) -> Iterator[tuple[str, object]]:
    own = vars(module)
    yield from _plain(own)
    if isinstance(config := own.get("_internal_dict"), dict):
        yield from ((f"config.{name}", value) for name, value in _plain(config))


def _plain(held: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Numbers, texts and rows of these, as they are now."""
    for name, value in held.items():
        is_row = isinstance(value, tuple | list) and all(isinstance(each, _PLAIN) for each in value)
        if (is_row or isinstance(value, _PLAIN)) and name not in _FREE and not name.startswith(("_", "tile_")):
            yield name, tuple(value) if is_row else value


def _functions(makers: Makers) -> Iterator[types.FunctionType]:
    yield from makers.functions
    for kind in makers.classes:
        for held in vars(kind).values():
            if isinstance(call := method_in(held), types.FunctionType):
                yield from functions_in(call)
