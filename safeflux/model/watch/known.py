"""Which code is known: that of the libraries that serve FLUX, bound to nothing but the module that is looked at."""

import functools
import types
from collections.abc import Collection, Iterator
from typing import Any

import torch

KNOWN = (
    *("torch", "torchao", "accelerate", "bitsandbytes", "diffusers", "optimum.quanto", "peft", "transformers"),
    *("cache_dit.caching", "safeflux"),
)
"""Packages whose code draws with a module's own parameters."""
_HELPERS = ("builtins", "contextlib", "functools", "huggingface_hub", "typing_extensions", "warnings")
"""Packages whose decorators they use."""
Within = Collection[torch.nn.Module]
"""The modules that known code may be bound to."""


def is_from_known(home: str) -> bool:
    """Whether a module of Python belongs to known packages."""
    return any(home == package or home.startswith(f"{package}.") for package in KNOWN)


def is_known(call: Any, within: Within) -> bool:
    """Whether a callable is code of known packages, and holds neither a module from elsewhere nor a tensor."""
    if isinstance(call, functools.partial):
        held = (*call.args, *call.keywords.values())
        return not any(_is_foreign(each, within) for each in held) and is_known(call.func, within)
    if _is_foreign(getattr(call, "__self__", None), within):
        return False
    function = getattr(call, "__func__", call)
    inner = uncompiled_call(function)
    if isinstance(inner, functools.partial) or inner is not function:
        return is_known(inner, within)
    closed_over = _closed_over(function)
    return is_from_known(_written_in(function)) and not any(_is_foreign(each, within) for each in closed_over)


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
        call = getattr(held, "__func__", None) or getattr(held, "fget", None) or held
        if isinstance(call, types.FunctionType):
            home = _written_in(call)
        elif isinstance(call, type) or not (callable(call) or hasattr(call, "__get__")):
            continue
        else:
            home = home_of(type(call))
        if not (is_from_known(home) or home.partition(".")[0] in _HELPERS):
            yield name


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


def _closed_over(function: Any) -> Iterator[Any]:
    """What a function holds from where it was defined."""
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # nothing yet
            continue


def _is_foreign(held: Any, within: Within) -> bool:
    """Whether something that code holds is a tensor, or a module from elsewhere, or is bound to one."""
    bound = getattr(held, "__self__", None) if isinstance(held, types.MethodType) else held
    return isinstance(bound, torch.Tensor) or (isinstance(bound, torch.nn.Module) and bound not in within)
