"""What decides a module's output beside tensors and the choice of code: settings of its parts, and what functions hold.

A norm's `eps`, an attention's `heads`, the code inside of a function: changed in place they draw something else, and
nothing shows whether they are right. So they are noted at the guard, and compared by `verify(deep=True)`.
"""

import types
from collections.abc import Iterator
from itertools import repeat
from typing import Any, NamedTuple

import torch

from safeflux.model.watch.attributes import are_same
from safeflux.model.watch.called import Called, Reached, inside
from safeflux.model.watch.dispatch import kernels
from safeflux.model.watch.forward import Makers
from safeflux.model.watch.known import functions_in, home_of, is_kernel, method_in, name_of

_PLAIN = (bool, int, float, str, type(None), torch.dtype)
_FREE = {"training", "gradient_checkpointing", "fused_projections", "use_slicing", "use_tiling"}
"""Attributes that may change: they are for less memory or for training, or are watched elsewhere."""


class Code:
    """What functions are made of, which functions others call by name, and which kernels Python gave to operations."""

    def __init__(self) -> None:
        """Note nothing yet."""
        self._insides: dict[types.FunctionType, tuple[object, ...]] = {}
        self._calls: dict[tuple[int, str], Called] = {}
        self._kernels = kernels()

    def add(self, reached: Reached) -> None:
        """Note what is not noted yet, as it is now."""
        for function in reached.functions:
            self._insides.setdefault(function, inside(function))
        for called in reached.calls:
            self._calls.setdefault((id(called.space), called.name), called)

    def differences(self) -> Iterator[str]:
        """Say which of these functions have other code now, and by which names others are called."""
        for function, was in self._insides.items():
            if inside(function) != was:
                yield f"the function {name_of(function)} has other code or defaults than at the guard"
        for called in self._calls.values():
            held = called.space.get(called.name)
            if held is not called.held and not is_kernel(held):
                yield f"{called._replace(held=held)} was another function at the guard"
        for kernel in sorted(kernels() - self._kernels):
            yield f"the operation {kernel} was given another kernel since the guard"


class Settings:
    """Classes and settings of a module's parts, and the insides of all functions that make its output."""

    def __init__(self, makers: Makers) -> None:
        """Note them."""
        self._parts = {name: _Noted.of(part) for name, part in _named(makers)}
        self._code = Code()
        self.add(makers)

    def add(self, makers: Makers) -> None:
        """Note functions that came since, such as those of a cache."""
        self._code.add(Reached(makers.calls, list(_functions(makers))))

    def other_functions(self) -> Iterator[str]:
        """Say which functions are made of something else now, or where another one is called by their name."""
        return self._code.differences()

    def other_parts(self, makers: Makers) -> Iterator[str]:
        """Say which parts are of another class now, or have other settings."""
        now: dict[str, list[torch.nn.Module]] = {}
        for name, part in _named(makers):
            now.setdefault(name, []).append(part)
        for name, noted in self._parts.items():
            parts, kind = now.get(name, []), noted.kind
            if parts and not any(isinstance(part, kind) for part in parts):  # quantisers take classes below it
                yield f"module {name!r} was {name_of(kind)} at the guard, and is {name_of(type(parts[0]))}"
            for part in parts:
                if type(part) is kind and not noted.is_plainly(part):
                    yield from differences(f"module {name!r}", noted.settings, dict(_attributes(part)))

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model may be read where the functions are others."""
        return {**vars(self), "_code": Code()}


class _Noted(NamedTuple):
    """The class and settings of a part."""

    kind: type
    settings: dict[str, object]
    types: list[type]
    """Of the values of these settings."""

    @classmethod
    def of(cls, part: torch.nn.Module) -> "_Noted":
        settings = dict(_attributes(part))
        return cls(type(part), settings, list(map(type, settings.values())))

    def is_plainly(self, part: torch.nn.Module) -> bool:
        """Whether a part has these settings as attributes: true of nearly all parts, and fast. If not, look closely."""
        own = vars(part)
        now = list(map(own.get, self.settings, repeat(own)))  # what is gone is of another type than any setting
        types = list(map(type, now))
        return tuple not in types and are_same(types, self.types) and now == list(self.settings.values())


def _named(makers: Makers) -> Iterator[tuple[str, torch.nn.Module]]:
    """Parts by their name in the base model; an adapter's layer has the name of the one that it was put around."""
    for name, part in makers.modules.items():
        yield (name or type(part).__name__).replace(".base_layer", ""), part


def differences(owner: str, then: dict[str, object], now: dict[str, object]) -> Iterator[str]:
    """Say which settings of something are gone, or others now."""
    for setting, value in then.items():
        if setting not in now:
            yield f"{owner}: its {setting} was {value!r} at the guard, and is gone"
        elif [now[setting]] != [value]:  # a list, so that NaN is equal to itself
            yield f"{owner}: its {setting} was {value!r} at the guard, and is {now[setting]!r}"


def _attributes(module: torch.nn.Module) -> Iterator[tuple[str, object]]:
    own = vars(module)
    yield from plain(own)
    if (processor := own.get("processor")) is not None:
        # diffusers has classes for fused projections and for newer torch, which draw the same
        yield "attention processor", type(processor).__name__.removeprefix("Fused").removesuffix("2_0")
    parts = {"config": own.get("_internal_dict"), "processor": getattr(own.get("processor"), "__dict__", None)}
    if home_of(type(own.get("config"))).startswith("transformers."):
        parts["config"] = vars(own["config"])
    for what, held in parts.items():
        yield from ((f"{what}.{name}", value) for name, value in plain(held or {}))


def plain(held: dict[str, Any], *, private: bool = False) -> Iterator[tuple[str, object]]:
    """Yield the numbers, texts and rows of these among attributes, as they are now.

    Args:
        held: Attributes by name.
        private: Also those whose names begin with an underscore.
    """
    for name, value in held.items():
        if name[:1] == "_" and not private:
            continue
        is_row = isinstance(value, tuple | list) and all(isinstance(each, _PLAIN) for each in value)
        if (is_row or isinstance(value, _PLAIN)) and name not in _FREE and not name.startswith("tile_"):
            yield name, tuple(value) if is_row else value


def _functions(makers: Makers) -> Iterator[types.FunctionType]:
    yield from makers.functions
    for kind in makers.classes:
        for held in vars(kind).values():
            if isinstance(call := method_in(held), types.FunctionType):
                yield from functions_in(call)
