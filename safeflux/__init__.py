"""Content safety that lives in the weights of a FLUX model.

A policy names content categories; each maps to trained binary masks; the masks are composed by AND and written into a
loaded model in place. Nothing else stays on the model: no hook, no wrapper, no second model.

    import safeflux
    handle = safeflux.guard(pipe, policy="strict")    # a diffusers pipeline or its transformer
    handle.verify()                                   # reads the tensors that forward reads
    handle.undo()                                     # every bit as it was
    safeflux.bake("flux", "guarded", policy="strict") # the same in files, for stacks that load files

Map: `guard` (the one verb), `policy` (what is asked for), `store` (where masks are found), `plan` (all checked, nothing
written), `apply` (the only room that writes weights in memory), `bake` (the one that writes them in files), `compact`
(neurons cut out), `onnxexport` (ONNX), `checkpoint` (models as files), `masks` (the algebra), `maskfile`
(the format), `sites` (the maskable places), `fingerprint` (which base a model is), `adapters` (LoRA and its kin),
`values` (what forward reads when weights are offloaded or packed), `handle` (what is in force), `receipt` (the
evidence), `errors`. The trainer is `safeflux.trainer`. Importing safeflux imports no torch: a name's module is loaded
when the name is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safeflux.apply import apply_masks_
    from safeflux.bake import bake
    from safeflux.errors import SafeFluxError
    from safeflux.guard import guard
    from safeflux.handle import GuardHandle
    from safeflux.maskfile import MaskMeta, load_masks, save_masks
    from safeflux.masks import MaskSet, compose
    from safeflux.modelplan import make_plan
    from safeflux.policy import Policy, load_policy
    from safeflux.sites import find_sites

__version__ = "0.1.0"

__all__ = [
    "GuardHandle",
    "MaskMeta",
    "MaskSet",
    "Policy",
    "SafeFluxError",
    "apply_masks_",
    "bake",
    "compose",
    "find_sites",
    "guard",
    "load_masks",
    "load_policy",
    "make_plan",
    "save_masks",
]

_HOME = {
    "GuardHandle": "handle",
    "MaskMeta": "maskfile",
    "MaskSet": "masks",
    "Policy": "policy",
    "SafeFluxError": "errors",
    "apply_masks_": "apply",
    "bake": "bake",
    "compose": "masks",
    "find_sites": "sites",
    "guard": "guard",
    "load_masks": "maskfile",
    "load_policy": "policy",
    "make_plan": "modelplan",
    "save_masks": "maskfile",
}


class _Face(ModuleType):
    """Keeps `safeflux.guard` the function: importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'safeflux' has no attribute {name!r}")
    return getattr(import_module(f"safeflux.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
