"""Which code is known: that of the libraries that serve FLUX, bound to nothing but the module that is looked at."""

import functools
import sys
import types
from collections.abc import Collection, Iterator
from typing import Any

import torch

from safeflux.model.watch.compilers import held_by_compiler

KNOWN = (
    *("torch", "torchao", "accelerate", "bitsandbytes", "diffusers", "optimum.quanto", "peft", "transformers"),
    *("cache_dit.caching", "safeflux"),
)
"""Packages whose code draws with a module's own parameters."""
_HELPERS = ("builtins", "contextlib", "functools", "huggingface_hub", "typing_extensions", "warnings")
"""Packages whose decorators they use."""
_DATA = sys.stdlib_module_names | {"huggingface_hub", "numpy", "packaging", "pybind11_builtins", "typing_extensions"}
"""Packages of what else their code may hold: settings, locks, numbers, versions, records of functions in C++."""
_KERNELS = {"aiter", "flash_attn", "flash_attn_interface", "kernels", "sageattention", "xformers"}
"""Packages of attention kernels that diffusers calls: they get queries, keys and values, and hold no weights."""
_METHODS = (types.MethodType, types.BuiltinMethodType)
_BOUND = (*_METHODS, functools.partial)
_CONTAINERS = (list, tuple, set, frozenset)
Within = Collection[torch.nn.Module]
"""The modules that known code may be bound to."""


@functools.cache
def is_from_known(home: str) -> bool:
    """Whether a module of Python belongs to known packages."""
    return any(home == package or home.startswith(f"{package}.") for package in KNOWN)


def is_known(call: Any, within: Within) -> bool:
    """Whether a callable is code of known packages, and holds neither a module from elsewhere nor a tensor.

    What it holds is followed through partials, methods, closures and containers, and through what objects call that
    lie in these: a forward that wraps another one is known only if that one is.
    """
    return is_from_known(_written_in(inmost(call))) and not any(_is_foreign(each, within) for each in reached_by(call))


def reached_by(call: Any) -> Iterator[Any]:
    """Yield a callable and what it holds, each once; modules, tensors and the data of objects are not looked into."""
    seen: dict[int, Any] = {}  # held, or another object could come to have the same id
    left = [call]
    while left:
        thing = left.pop()
        if id(thing) not in seen:
            seen[id(thing)] = thing
            yield thing
            left += _held_by(thing)


def functions_in(call: Any) -> list[types.FunctionType]:
    """The functions of Python among a callable and what it holds, such as the one inside of a decorated one."""
    return [each for each in reached_by(call) if isinstance(each, types.FunctionType)]


def is_known_to_call(call: Any) -> bool:
    """Whether a function that known code calls by name is known and holds only what is, or is an attention kernel."""
    return not any(_is_foreign(each, ()) for each in reached_by(call)) or is_kernel(call)


def is_kernel(call: Any) -> bool:
    """Whether a function is an attention kernel of a package that is known for these."""
    return isinstance(call, types.FunctionType) and _written_in(call).partition(".")[0] in _KERNELS


def is_of(call: Any, module: torch.nn.Module) -> bool:
    """Whether a call is bound to this module and no other."""
    call = uncompiled_call(call)
    if isinstance(call, functools.partial):
        return call.args[:1] == (module,)
    return getattr(call, "__self__", None) is module


def uncompiled_call(call: Any) -> Any:
    """What `torch.compile` made a call of; any other call as it is."""
    # a partial has copies of its function's attributes, where diffusers wraps one
    return call if isinstance(call, functools.partial) else getattr(call, "_torchdynamo_orig_callable", call)


def holds_weights(thing: object) -> bool:
    """Whether an object that is no module has tensors or modules of its own, or code that is not known."""
    for held in getattr(thing, "__dict__", {}).values():
        parts = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple | set) else (held,)
        if any(_is_foreign(part, ()) or (callable(part) and not is_known(part, ())) for part in parts):
            return True
    return False


def foreign_methods(kind: type) -> Iterator[str]:
    """Name what a class does that is not known code: patched methods, properties, a way of its own to find attributes.

    Args:
        kind: The class itself; not what it inherits.
    """
    for name, held in vars(kind).items():
        call = method_in(held)
        if isinstance(call, types.FunctionType):
            home = _written_in(call)
        elif isinstance(call, type) or not (callable(call) or hasattr(call, "__get__")):
            continue
        else:
            home = home_of(type(call))
        is_plain = isinstance(call, types.FunctionType) and not (call.__closure__ or vars(call))
        holds_foreign = not is_plain and any(_is_foreign(each, ()) for each in reached_by(held))
        if holds_foreign or not (is_from_known(home) or home.partition(".")[0] in _HELPERS):
            yield name


def method_in(held: Any) -> Any:
    """The function behind what stands in a class: a method of any sort, or what a property calls."""
    return getattr(held, "__func__", None) or getattr(held, "fget", None) or held


def home_of(thing: Any) -> str:
    """The module of Python that a class or function says it is from."""
    return str(getattr(thing, "__module__", ""))


def name_of(thing: Any) -> str:
    """What to call a class or function in an error."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    bound = getattr(thing, "__self__", None)
    owner = f"{name_of(type(bound))}." if isinstance(bound, torch.nn.Module) else ""
    thing = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{owner}{thing.__name__}" if owner else f"{home_of(thing)}.{thing.__qualname__}"


def _written_in(function: Any) -> str:
    """Where a function was written; what `functools.wraps` copied says something else."""
    home = getattr(function, "__globals__", {}).get("__name__") or home_of(function) or home_of(type(function))
    return str(home)


def inmost(call: Any) -> Any:
    """The function that does the work, inside of partials, methods and compilers."""
    while True:
        inner = uncompiled_call(getattr(call, "__func__", call))
        inner = inner.func if isinstance(inner, functools.partial) else inner
        if inner is call:
            return call
        call = inner


def _held_by(thing: Any) -> list[Any]:
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.FunctionType):
        return [*_closed_over(thing), *held_by_compiler(thing)]
    if isinstance(thing, _METHODS):
        return [thing.__self__, getattr(thing, "__func__", None)]
    if hasattr(type(thing), "__get__"):  # what stands in classes: properties, partial methods
        return [method_in(thing), *getattr(thing, "__dict__", {}).values()]
    if isinstance(thing, (dict, *_CONTAINERS)):
        return list(thing.values() if isinstance(thing, dict) else thing)
    if isinstance(thing, types.SimpleNamespace):
        return list(vars(thing).values())
    if isinstance(thing, torch.nn.Module | torch.Tensor | type | types.ModuleType):
        return []
    bound = [held for held in getattr(thing, "__dict__", {}).values() if isinstance(held, _BOUND)]
    return [*bound, *held_by_compiler(thing)]


def _closed_over(function: Any) -> Iterator[Any]:
    """What a function holds from where it was defined."""
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # nothing yet
            continue


def _is_foreign(held: Any, within: Within) -> bool:
    """Whether something that code holds is a tensor, a module from elsewhere, or of packages that are not known."""
    if isinstance(held, torch.nn.Module):
        return held not in within
    if isinstance(held, torch.Tensor):
        return True
    if isinstance(held, types.FunctionType):
        home = _written_in(held)
    else:
        home = home_of(held if isinstance(held, type) else type(held))
    return not (is_from_known(home) or home.partition(".")[0] in _DATA)
