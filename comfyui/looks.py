"""What is looked at on the engine's model patcher: base weights, what forward reads, and what other nodes put there."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfyui_version import __version__ as engine_version

from safeflux import ModelError, PackedTensor, Policy, Status, TensorPlan

from .guards import PREFIX, Zeros, is_zeros


def base_tensors(model: ModelPatcher) -> dict[str, torch.Tensor | PackedTensor]:
    """Return the loaded weights of the transformer by name, without what patches and hooks made of them."""
    found = {}
    for key, weight in model.model.named_parameters(remove_duplicate=False):
        if key in model.backup:
            weight = model.backup[key].weight
        elif key in model.hook_backup:
            weight = model.hook_backup[key][0]
        if key.startswith(PREFIX):
            found[key.removeprefix(PREFIX)] = _plain(weight)
    return found


def _plain(weight: torch.Tensor) -> torch.Tensor | PackedTensor:
    """A weight as safeflux reads it: loaders of GGUF keep blocks in a tensor class of their own."""
    if not hasattr(weight, "tensor_type"):
        return weight
    kind, shape = weight.tensor_type, tuple(weight.shape)
    data = weight.data.as_subclass(torch.Tensor)
    return data if kind is None or data.is_floating_point() else PackedTensor(data, kind.name, shape)


def check_adapters(policy: Policy, model: ModelPatcher) -> None:
    """Check what other nodes put on the model against the policy.

    Raises:
        ModelError: The policy does not allow it, or lists files, which cannot be recognised in what a node loaded.
    """
    if policy.adapters == "allowlist":
        raise ModelError(
            f"policy {policy.name!r} says `adapters: allowlist`, and in this engine the files of adapters cannot be "
            "recognised once they are loaded; say `deny` or `allow`"
        )
    if policy.adapters == "deny" and (found := others(model)):
        raise ModelError(
            f"{found[0]}, and policy {policy.name!r} says `adapters: deny`; allow them, or remove the node"
        )


def others(model: ModelPatcher) -> list[str]:
    """Return what other nodes change in the weights, a sentence each: patches, hooks, wrappers of their own."""
    patched = [key for key, patches in model.patches.items() if not all(map(is_zeros, patches))]
    hooked = [key for patches in model.hook_patches.values() for key in patches]
    wrapped = [
        key
        for key, functions in model.weight_wrapper_patches.items()
        if not all(isinstance(each, Zeros) for each in functions)
    ]
    named = {"patches (a LoRA, or a merged model)": patched, "LoRA hooks": hooked, "weight wrappers": wrapped}
    return [
        f"other nodes put {what} on {len(keys)} weights, such as {keys[0]!r}" for what, keys in named.items() if keys
    ]


def replaced(model: ModelPatcher) -> list[str]:
    """Return what keeps the look at the weights from saying what is drawn with, a sentence each."""
    objects = [name for name in model.object_patches if f"{name}.".startswith(PREFIX)]
    found = [f"another node replaced {name!r}, which was guarded" for name in objects]
    return found + [f"another node changes modules while it samples ({name!r})" for name in model.injections]


def status(model: ModelPatcher, plan: TensorPlan) -> Status:
    """Load the model as the sampler would, and read what forward reads of every weight that a plan masks."""
    comfy.model_management.load_models_gpu([model])
    broken = others(model) if plan.plan.policy.adapters == "deny" else []
    return plan.status(_Reader(model), broken, replaced(model))


class _Reader:
    """Weights as the engine's layers cast them for forward; the one layer that was cast last is kept."""

    def __init__(self, model: ModelPatcher) -> None:
        self.model, self.last = model, ("", None, None)
        self.dtype = model.get_model_object("manual_cast_dtype") or model.model_dtype()

    def __call__(self, name: str) -> torch.Tensor:
        layer, _, leaf = name.rpartition(".")
        if self.last[0] != layer:
            module = comfy.utils.get_attr(self.model.model, PREFIX + layer)
            cast: Callable[..., Any] = getattr(module, "cast_bias_weight", partial(comfy.ops.cast_bias_weight, module))
            weight, bias, *_ = cast(dtype=self.dtype, device=module.weight.device, bias_dtype=self.dtype)
            self.last = layer, weight, bias
        return self.last[1 if leaf == "weight" else 2]


def receipt(model: ModelPatcher, plan: TensorPlan, found: Status) -> dict[str, Any]:
    """Return the evidence of this moment."""
    weights = list(base_tensors(model).values())
    kinds = [one.kind if isinstance(one, PackedTensor) else str(one.dtype).removeprefix("torch.") for one in weights]
    held = Counter(one.kind if isinstance(one, PackedTensor) else "memory" for one in weights)
    changed = Counter(
        key.rpartition(".")[0] for key, patches in model.patches.items() for p in patches if not is_zeros(p)
    )
    return plan.receipt(
        found,
        base={
            "class": f"{type(model.model.diffusion_model).__module__}.{type(model.model.diffusion_model).__name__}",
            "dtypes": sorted(set(kinds)),
            "devices": [str(model.load_device)],
        },
        adapters={
            layer: {"adapters": [f"{count} patches"], "fused": [], "scales": {}} for layer, count in changed.items()
        },
        held=held,
        versions={"comfyui": engine_version},
    )
