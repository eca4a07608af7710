"""Which functions a module's code calls by name, and which of them are not known.

A forward looks `F.linear`, `apply_rotary_emb` or its attention backend up by name each time it runs, and `F` too.
Whoever puts another function or namespace there draws with other weights, and no module changes.
"""

import builtins
import sys
import types
from collections.abc import Collection, Iterable, Iterator, MutableMapping
from functools import cache
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch

from safeflux.model.watch.known import (
    functions_in,
    home_of,
    inmost,
    is_from_known,
    is_known_to_call,
    method_in,
    name_of,
)

_FOLLOWED = ("diffusers", "transformers", "torch.nn")
"""Packages into whose functions the search goes on; what these call of others is looked at, and not what that calls."""
Space = dict[str, Any]


class Called(NamedTuple):
    """A function, and where it is looked up."""

    space: Space
    """Of a module of Python, or diffusers' table of attention backends."""
    name: str
    held: Any

    def __str__(self) -> str:
        """`torch.nn.functional.linear, which is now __main__.mine,`."""
        held = self.held.__name__ if isinstance(self.held, types.ModuleType) else name_of(self.held)
        return f"{self.space.get('__name__', 'attention backend')}.{self.name}, which is now {held},"


class Reached(NamedTuple):
    """What forwards call by name, and every function of Python among that and among the forwards themselves."""

    calls: list[Called]
    functions: list[types.FunctionType]


def called_by(modules: Collection[torch.nn.Module], kinds: Collection[type] = ()) -> Reached:
    """Return what the forwards and attention processors of modules call by name, and what that calls.

    Args:
        modules: The modules.
        kinds: Classes of a pipeline and of its parts without weights, whose calls are looked at too, and what these
            call by the name of a method of any of these classes.
    """
    processors = {type(held): held for module in modules if (held := vars(module).get("processor")) is not None}
    found = {(id(called.space), called.name): called for called in _backends(processors.values())}
    callers: list[Any] = [*processors, *kinds]
    calls = [kind.__call__ for kind in callers]
    left = [*_starts(modules), *calls, *(called.held for called in found.values())]
    seen: dict[types.FunctionType, None] = {}
    while left:
        for function in functions_in(inmost(left.pop())):
            if function in seen:
                continue
            seen[function] = None
            if not _is_followed(function):
                continue
            for called in _called_of(function):
                found[id(called.space), called.name] = called
                left.append(called.held)
            left += [method_in(held) for name in _names(function.__code__) for held in _methods(kinds, name)]
    return Reached(list(found.values()), list(seen))


class Insides:
    """What functions are made of, for the question whether they still are."""

    def __init__(self, functions: list[types.FunctionType]) -> None:
        """Note code, defaults, and the functions that decorated ones hold."""
        self._functions = functions
        self._states = list(map(_STATE, functions))
        cells = [cell for function in functions for cell in function.__closure__ or () if callable(_content(cell))]
        self._cells, self._contents = cells, list(map(_content, cells))

    def are_unchanged(self) -> bool:
        """Whether they are made of the same; what was changed inside of a dictionary of defaults is not seen."""
        return list(map(_STATE, self._functions)) == self._states and list(map(_content, self._cells)) == self._contents


_STATE = attrgetter("__code__", "__defaults__", "__kwdefaults__")


def inside(function: types.FunctionType) -> tuple[object, ...]:
    """What a function is made of: code, defaults, and the functions that it holds from where it was defined."""
    code, defaults, by_name = _STATE(function)
    held = [content for cell in function.__closure__ or () if callable(content := _content(cell))]
    return code, defaults, dict(by_name or {}), held


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return None


class Places:
    """What stands at the places of some calls, for the question whether it still does."""

    def __init__(self, calls: Iterable[Called]) -> None:
        """Note them."""
        by_space: dict[int, list[Called]] = {}
        for called in calls:
            by_space.setdefault(id(called.space), []).append(called)
        groups = by_space.values()
        self._spaces = [group[0].space for group in groups]
        # With a single name a getter returns no tuple.
        self._getters = [itemgetter(*(called.name for called in group), group[0].name) for group in groups]
        self._held = [(*(called.held for called in group), group[0].held) for group in groups]

    def are_unchanged(self) -> bool:
        """Whether the same functions are there.

        Raises:
            KeyError: One is gone.
        """
        return [get(space) for get, space in zip(self._getters, self._spaces, strict=True)] == self._held


def foreign_calls(calls: Iterable[Called]) -> Iterator[str]:
    """Name the functions that are not known."""
    return (str(called) for called in calls if not _is_known(called.held))


def _is_known(held: Any) -> bool:
    if isinstance(held, types.ModuleType):
        return sys.modules.get(held.__name__) is held  # what Python imported by that name
    return isinstance(held, types.BuiltinFunctionType) or is_known_to_call(held)


def called_classes() -> list[type]:
    """Classes whose methods forwards call, or that choose the functions that they call."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return [_AttentionBackendRegistry, torch.Tensor, torch.nn.Parameter]


def _starts(modules: Collection[torch.nn.Module]) -> Iterator[Any]:
    kinds: dict[Any, None] = dict.fromkeys(map(type, modules))
    yield from (kind.forward for kind in kinds)
    for module in modules:
        if (forward := vars(module).get("forward")) is not None:
            yield forward


def _backends(processors: Iterable[Any]) -> Iterator[Called]:
    """The attention of diffusers that is in use: all of them, and those of processors that name one."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    names = {getattr(processor, "_attention_backend", None) for processor in processors} - {None}
    names.add(_AttentionBackendRegistry._active_backend)
    known: Any = _AttentionBackendRegistry._backends
    yield from (Called(known, name, known[name]) for name in map(AttentionBackendName, names) if name in known)


def _methods(kinds: Iterable[type], name: str) -> Iterator[Any]:
    return (getattr(kind, name) for kind in kinds if hasattr(kind, name))


def _tables(held: Any) -> Iterator[Called]:
    """What transformers looks attention up in: its own functions, and in the place of these others."""
    if home_of(type(held)).startswith("transformers.") and isinstance(held, MutableMapping):
        for table in (getattr(held, name, {}) for name in ("_local_mapping", "_global_mapping")):
            yield from (Called(table, name, function) for name, function in table.items() if callable(function))


def _called_of(function: types.FunctionType) -> Iterator[Called]:
    names = _names(function.__code__)
    for space in _spaces(function.__globals__, names):
        for name in names:
            held = space.get(name)
            yield from _tables(held)
            is_space = isinstance(held, types.ModuleType | types.SimpleNamespace)
            is_called = callable(held) and not isinstance(held, type | torch.nn.Module)
            if is_space or is_called or (isinstance(held, type) and _has_known_types(space)):
                yield Called(space, name, held)


def _has_known_types(space: Space) -> bool:
    """Whether names in it stand for classes of torch or Python alone; diffusers uses those of many packages."""
    return str(space.get("__name__")).partition(".")[0] in ("torch", "builtins")


def _spaces(own: Space, names: frozenset[str]) -> Iterator[Space]:
    """A function's globals, those of the known modules that it reaches by name (`torch`, `torch.nn`), and `max`."""
    left, seen = [own, vars(builtins)], set[int]()
    while left:
        space = left.pop()
        if id(space) in seen:
            continue
        seen.add(id(space))
        yield space
        inside = (space.get(name) for name in names)
        left += [vars(each) for each in inside if isinstance(each, types.ModuleType) and is_from_known(each.__name__)]


@cache
def _names(code: types.CodeType) -> frozenset[str]:
    """All names that a function looks up outside of itself, those of functions within it too."""
    inside = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(code.co_names).union(*map(_names, inside))


def _is_followed(function: types.FunctionType) -> bool:
    home = str(function.__globals__.get("__name__"))
    return any(home == package or home.startswith(f"{package}.") for package in _FOLLOWED)
