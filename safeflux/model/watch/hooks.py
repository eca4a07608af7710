"""Hooks of accelerate and diffusers on a module: those that draw what the module draws are known by name, no others.

A package that is known is not enough: diffusers ships hooks that leave layers out (`apply_layer_skip`) or blur what
they give (smoothed energy guidance), and a later version may ship more. Each name here was looked at.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from safeflux.model.watch.known import home_of, is_known, name_of

_ACCELERATE = ("ModelHook", "SequentialHook", "AlignDevicesHook", "CpuOffload", "LayerwiseCastingHook")
_DIFFUSERS = (
    "ModelHook",
    *("GroupOffloadingHook", "LazyPrefetchGroupOffloadingHook", "LayerExecutionTrackerHook"),
    *("LayerwiseCastingHook", "PeftInputAutocastDisableHook"),
    *("ContextParallelSplitHook", "ContextParallelGatherHook"),
    *("FBCHeadBlockHook", "FBCBlockHook", "MagCacheHeadHook", "MagCacheBlockHook", "TaylorSeerCacheHook"),
    *("FasterCacheDenoiserHook", "FasterCacheBlockHook", "PyramidAttentionBroadcastHook"),
    *("SeaCacheRootHook", "SeaCacheLeaderBlockHook", "SeaCacheBlockHook", "SeaCachePostNormHook"),
    *("TextKVCacheTransformerHook", "TextKVCacheBlockHook"),
)
KNOWN_HOOKS = {"accelerate.hooks": frozenset(_ACCELERATE), "diffusers.hooks": frozenset(_DIFFUSERS)}
"""Names of classes, by the module or package of Python that they are in."""


def hooks_of(own: Mapping[str, Any]) -> list[Any]:
    """Return the hook objects on a module, by its attributes: those inside of accelerate's sequences too."""
    left, found = [own["_hf_hook"]] if own.get("_hf_hook") is not None else [], []
    while left:
        found.append(hook := left.pop())
        left += getattr(hook, "hooks", ())
    registry = own.get("_diffusers_hook")
    return found if registry is None else [*found, *registry.hooks.values()]


def references_of(own: Mapping[str, Any]) -> list[Any]:
    """Return what diffusers' hooks on a module call before, for and after its output, in chain."""
    return list(getattr(own.get("_diffusers_hook"), "_fn_refs", ()))


def held_by_hook(hook: Any) -> Iterator[dict[str, Any]]:
    """Yield the dictionaries in which an offload hook looks for the values of weights."""
    held = getattr(hook, "weights_map", None)
    while held is not None and hasattr(held, "__dict__"):
        yield vars(held)
        yield from (each for each in vars(held).values() if isinstance(each, dict))
        held = getattr(held, "dataset", None)


def strange_hooks(own: Mapping[str, Any]) -> Iterator[str]:
    """Name the hooks on a module that are not known to draw what it draws, and what was put into known ones."""
    hooks = hooks_of(own)
    registry = own.get("_diffusers_hook")
    if registry is not None and name_of(type(registry)) != "diffusers.hooks.hooks.HookRegistry":
        yield f"the hook {name_of(type(registry))}"
    for hook in hooks:
        kind = type(hook)
        if not any(_is_in(kind, package) and kind.__name__ in names for package, names in KNOWN_HOOKS.items()):
            yield f"the hook {name_of(kind)}"
        for name, held in getattr(hook, "__dict__", {}).items():
            if callable(held) and callable(getattr(kind, name, None)):
                yield f"the {name} of the hook {name_of(kind)}"
    for reference in references_of(own):
        for name in ("pre_forward", "post_forward"):
            call = getattr(reference, name)
            if call is not None and not (getattr(call, "__self__", None) in hooks and is_known(call, ())):
                yield f"the {name} of a hook, {name_of(call)},"


def _is_in(kind: type, package: str) -> bool:
    return home_of(kind) == package or home_of(kind).startswith(f"{package}.")
