"""Which code makes a module's next output: forwards, hooks and attention processors, and which of it is not known.

Known is code of the libraries that serve FLUX (`known`), so far as it draws with the module's own parameters: the
classes of torch and diffusers, hooks of accelerate and diffusers by their names (`hooks`), cache-dit, quantisers.
Anything else can draw with other weights than those that are read, and so nobody can tell what it draws.
A copy of a model with such hooks is that too: Python copies no function, so its forward may lead to the first model.

`snapshot` notes by identity what can change without a change of class, and judges nothing. Neither sees a
`functional_call`, or a mode that is entered only while a picture is drawn.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.modules.module as torch_module

from safeflux.cached import cached_property
from safeflux.model.watch.called import called_by, called_classes, foreign_calls
from safeflux.model.watch.dispatch import foreign_modes
from safeflux.model.watch.hooks import hooks_of, references_of, strange_hooks
from safeflux.model.watch.known import (
    Within,
    foreign_methods,
    holds_weights,
    home_of,
    inmost,
    is_from_known,
    is_known,
    is_of,
    name_of,
    reached_by,
    uncompiled_call,
)
from safeflux.model.watch.parts import cache_dit_in, named_parts
from safeflux.model.weights import uncompiled

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_HELPERS = ("processor", "_hf_hook", "_old_forward", "_diffusers_hook")
_CALLED = {"forward", "_call_impl", "_wrapped_call_impl", "_compiled_call_impl"}
"""What torch calls, or is set to call, for an output."""
_OPERATIONS = ("torch.nn.functional", "torch.functional", "torch._C", "torch._VF")


class Makers:
    """What makes a module's output at the moment when this is made: modules, functions, classes."""

    def __init__(
        self,
        root: torch.nn.Module,
        drawn: torch.nn.Module | None = None,
        parts: Mapping[str, torch.nn.Module] | None = None,
    ) -> None:
        """Find it.

        Args:
            root: A transformer, or another module of a pipeline.
            drawn: What a pipeline draws with: the wrapper of `torch.compile` around the transformer, or itself.
            parts: All modules of the root by name, if these are known already.
        """
        self.modules = makers_of(root, parts)
        """By name."""
        if drawn is not None and drawn is not root:
            self.modules["torch.compile"] = drawn
        self.calls, self.functions = called_by(self.modules.values())

    @cached_property
    def classes(self) -> list[type]:
        """Those of the modules, of their processors and hooks, and all that these inherit."""
        modules = self.modules.values()
        kinds = dict.fromkeys(type(each) for module in modules for each in (module, *_helpers(vars(module))))
        return list(dict.fromkeys(base for kind in kinds for base in kind.__mro__ if base is not object))


def strangers(makers: Makers) -> list[str]:
    """Say what of the code that makes a module's output is not known; empty if all of it is."""
    within = set(makers.modules.values())
    foreign = [hook for hook in global_hooks() if not _is_known_hook(hook, within)]
    found = [*foreign_modes(), *(f"a hook of all modules, {name_of(hook)}," for hook in foreign)]
    for name, module in makers.modules.items():
        found += [f"module {name or type(module).__name__!r}: {what}" for what in _strange(module, within)]
    for kind in (*makers.classes, *called_classes()):
        found += [f"{name_of(kind)}.{method}" for method in foreign_methods(kind)]
    found += foreign_calls(makers.calls)
    return [f"{what} is not known here, and may draw with other weights" for what in found]


def makers_of(root: torch.nn.Module, parts: Mapping[str, torch.nn.Module] | None = None) -> dict[str, torch.nn.Module]:
    """Return the modules that make a module's output, by name: its parts, and what its forwards put around these.

    cache-dit keeps its blocks, which draw with the model's own, where only the forward that it sets can see them.
    """
    makers = named_parts(root) if parts is None else dict(parts)
    within = set(makers.values())
    calls = [
        (f"{name}.{leaf}".lstrip("."), vars(module)[leaf])
        for name, module in makers.items()
        for leaf in vars(module).keys() & _CALLED
    ]
    own = {id(tensor) for tensor in _tensors(root)} if calls else set()
    for name, call in calls:
        held = [each for each in reached_by(call) if isinstance(each, torch.nn.Module) and each not in within]
        for number, around in enumerate(held):
            if own.issuperset(map(id, _tensors(around))):
                inside = named_parts(around, f"{name}:{number}")
                makers |= {part: module for part, module in inside.items() if module not in within}
                within |= set(inside.values())
    return makers


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    for part in named_parts(module).values():
        held = (*part._parameters.values(), *part._buffers.values())
        yield from (tensor for tensor in held if tensor is not None)


def reset_caches(owns: Iterable[dict[str, Any]]) -> None:
    """Forget what caches hold of a picture: those of diffusers (First Block Cache and its like), and cache-dit's.

    Args:
        owns: The attributes of each module (`vars`); most have neither, which each switch of a pool has to find out.
    """
    for own in [own for own in owns if "_diffusers_hook" in own or "_context_manager" in own]:
        if (registry := own.get("_diffusers_hook")) is not None:
            registry.reset_stateful_hooks(recurse=False)
        if (contexts := cache_dit_in(own)) is not None:
            for name, context in list(contexts._cached_context_manager.items()):
                contexts.reset_context(name, *context._init_args, **context._init_kwargs)


def _strange(module: torch.nn.Module, within: Within) -> Iterator[str]:
    own = vars(module)
    for kind, held in (("parameter", module._parameters), ("part", module._modules), ("buffer", module._buffers)):
        if type(held) is not dict:
            yield f"the dictionary of its {kind}s, {name_of(type(held))},"
        for leaf in own.keys() & held.keys() if held else ():
            yield f"an attribute {leaf!r} that hides the {kind} of that name"
    for leaf in module._parameters:
        if leaf not in own and hasattr(type(module), leaf):
            yield f"{type(module).__name__}.{leaf}, which hides the parameter of that name,"
    if not is_from_known(home_of(type(module))):
        yield f"the class {name_of(type(module))}"
    for name in () if own.keys().isdisjoint(_CALLED) else own.keys() & _CALLED:
        if own[name] is not None and not _draws_itself(own[name], module, within):
            yield f"its {name}, {name_of(own[name])},"
    for name, held in [(name, held) for name, held in own.items() if callable(held)]:
        if name not in _CALLED and name not in _HELPERS and not isinstance(held, type):
            hides = callable(getattr(type(module), name, None))
            if not is_known(held, {module} if hides else within):
                yield f"its {name}, {name_of(held)}," + (" which hides the method of that name," if hides else "")
    for hook in (hook for kind in HOOKS for hook in own[kind].values()):
        if not _is_known_hook(hook, within):
            yield f"a forward hook, {name_of(hook)},"
    if "_hf_hook" in own or "_diffusers_hook" in own:
        yield from strange_hooks(own)
    processor = own.get("processor")
    if processor is not None and (not is_from_known(home_of(type(processor))) or holds_weights(processor)):
        yield f"the attention processor {name_of(type(processor))}"


def _helpers(own: Mapping[str, Any]) -> Iterator[object]:
    """The attention processor of a module, and the hook objects of accelerate and diffusers on it."""
    held = (own.get("processor"), own.get("_diffusers_hook"), *hooks_of(own))
    return (each for each in held if each is not None)


def _draws_itself(call: Any, module: torch.nn.Module, within: Within) -> bool:
    """Whether a method of a module's own is that of its class, or known code around it."""
    own, module = vars(module), uncompiled(module)
    around = [own["_old_forward"]] if "_old_forward" in own else []
    for reference in references_of(own):
        around += [each for each in (reference.forward, reference.original_forward) if each is not None]
    calls = (call, uncompiled_call(call), *around)
    return all(is_of(each, module) and is_known(each, within) and _is_own(each, module) for each in calls)


def _is_own(call: Any, module: torch.nn.Module) -> bool:
    """Whether a call is no method by the name of `forward` that belongs to another class than the module's."""
    function = inmost(call)
    forwards = (inmost(base.forward) for base in type(module).__mro__ if hasattr(base, "forward"))
    return getattr(function, "__name__", "") != "forward" or any(function is each for each in forwards)


def _is_known_hook(hook: Any, within: Within) -> bool:
    """Whether it is known, and no operation of torch, which would only change the output."""
    return is_known(hook, within) and not home_of(inmost(hook)).startswith(_OPERATIONS)


def global_hooks() -> list[Any]:
    """The forward hooks of all modules there are."""
    return [*torch_module._global_forward_hooks.values(), *torch_module._global_forward_pre_hooks.values()]
