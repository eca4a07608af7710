"""What `torch.compile` calls to make graphs of forwards. A backend that is not torch's own may make any graph."""

import sys
import types
from collections.abc import Iterator
from typing import Any

_CONTEXTS = "torch._dynamo.eval_frame"
_PACKAGES = ("torch._dynamo.", "torch._inductor.", "torch._functorch.")
_PASSES = (
    *("pre_grad_custom_pass", "joint_custom_pre_pass", "joint_custom_post_pass"),
    *("post_grad_custom_pre_pass", "post_grad_custom_post_pass"),
    *("_pre_fusion_custom_pass", "_post_fusion_custom_pass", "custom_partitioner_fn"),
)
"""Settings of inductor that hold functions which change graphs, for all that is compiled."""


def stance() -> Any:
    """Torch's stance on compiled calls, which may force another backend on all of them; None before any is compiled."""
    return getattr(sys.modules.get(_CONTEXTS), "_stance", None)


def held_by_compiler(thing: Any) -> Iterator[Any]:
    """Yield what a compiled function or a part of torch's compilers calls, such as a backend; of others, nothing."""
    kind = type(thing)
    home = str(kind.__module__)
    if isinstance(thing, types.FunctionType):
        if "_torchdynamo_orig_callable" in vars(thing):
            yield from vars(thing).values()
    elif home == _CONTEXTS:
        if callback := vars(thing).get("callback"):  # of `torch.compiler.disable` there is none
            yield from (callback, getattr(stance(), "backend", None))
            config = sys.modules.get("torch._inductor.config")
            yield from (getattr(config, name, None) for name in _PASSES)
    elif home.startswith(_PACKAGES) or kind.__name__.startswith("_TorchCompile"):
        yield from getattr(thing, "__dict__", {}).values()
