"""LoRA and similar adapters on a loaded model, as PEFT adds them: the layers they wrap, and whether they are known.

An adapter adds to the weights of the layers that it wraps, masked elements included, and on other layers it can learn
an erased concept again. A policy says which adapters a model may carry: none, those of listed files, or any.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from safeflux.errors import ModelError
from safeflux.families.sites import adapter_names
from safeflux.model.watch.parts import named_parameters, named_parts
from safeflux.policy.schema import Adapters, Policy

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HOW_TO_KEEP = "Fuse it (`pipe.fuse_lora()`) and call the handle's `refresh()`, or unload it."
Admitted = frozenset[tuple[str, str]]
"""What adapters of known files are recognised by: the sha256 of a file, and of a tensor in it with its layer."""
_PREFIXES = ("base_model.model.", "model.")
_OLD_NAMES = {".lora.down.": ".lora_A.", ".lora.up.": ".lora_B."}
"""Names of diffusers' older files, under which the same tensors are saved."""


@dataclass(frozen=True)
class Wrapped:
    """What adapters do to one layer that they wrap."""

    adapters: tuple[str, ...]
    """Names of the adapters that have weights for it."""
    fused: tuple[str, ...]
    """Those whose change lies in the layer's own weights now."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """By what factor each adapter's change is multiplied, as far as its library says."""

    @property
    def unfused(self) -> tuple[str, ...]:
        """Those that add to the layer's output on every call, or will once they are switched on."""
        return tuple(name for name in self.adapters if name not in self.fused)


def wrapped_layers(parts: Mapping[str, torch.nn.Module]) -> dict[str, Wrapped]:
    """Return every layer that carries adapters, under the name that it had before. Any library's wrapper is one.

    Args:
        parts: All modules of the model, by name.
    """
    found = {}
    for name, module in parts.items():
        if "base_layer" in module._modules or "base_layer" in vars(module):
            kinds = getattr(module, "adapter_layer_names", ())
            held = [part for kind in kinds if hasattr(part := getattr(module, kind), "keys")]
            names = tuple(dict.fromkeys(key for part in held for key in part))
            fused = tuple(getattr(module, "merged_adapters", ()))
            scales = {key: float(scale) for key, scale in getattr(module, "scaling", {}).items()}
            found[name.replace(".base_layer", "")] = Wrapped(names or ("unnamed",), fused, scales)
    return found


def unfused_on(parts: Mapping[str, torch.nn.Module], tensors: Iterable[str]) -> dict[str, str]:
    """Return which of these tensors have adapters on top of them: tensor name to adapter names."""
    unfused = {layer: ", ".join(w.unfused) for layer, w in wrapped_layers(parts).items() if w.unfused}
    layers = {name: name.rpartition(".")[0] for name in tensors}
    return {name: unfused[layer] for name, layer in layers.items() if layer in unfused}


def check_unfused(transformer: torch.nn.Module, tensors: Iterable[str]) -> None:
    """Make sure that no adapter adds to tensors that are to be masked.

    Raises:
        ModelError: One does.
    """
    for name, adapter in unfused_on(named_parts(transformer), tensors).items():
        raise ModelError(
            f"tensor {name!r}: adapter {adapter} adds to masked elements of it on every call. The order that works: "
            "unload it, guard, load it, `pipe.fuse_lora()`, then the handle's `refresh()`."
        )


def admit(policy: Policy, *paths: str | os.PathLike[str]) -> Admitted:
    """Read adapter files that a policy lists, and return what their tensors are recognised by.

    Args:
        policy: Says `adapters: allowlist`, with the sha256 of each file.
        paths: The safetensors files, in the format of PEFT and diffusers.

    Raises:
        ModelError: The policy does not list a file, or it cannot be read.
    """
    return frozenset(digest for path in paths for digest in _digests_of(path, policy))


def _digests_of(path: str | os.PathLike[str], policy: Policy) -> set[tuple[str, str]]:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"{os.fspath(path)}: cannot be read ({error.strerror}); expected an adapter file") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 not in policy.adapter_allowlist:
        raise ModelError(
            f"{path}: sha256 {sha256} is not on the adapter_allowlist of the policy {policy.name!r}. If this file may "
            "be used, add that line to the policy."
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ModelError(f"{path}: expected a safetensors file of an adapter ({error})") from error
    # In memory an adapter has the dtype of the model.
    return {
        (sha256, _digest(_place_in_file(key), tensor.to(dtype)))
        for key, tensor in tensors.items()
        for dtype in {tensor.dtype, *_DTYPES}
    }


def check_adapters(
    policy: Policy,
    transformer: torch.nn.Module,
    admitted: Admitted = frozenset(),
    *,
    part: str = "transformer",
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Make sure that the model carries no adapter that the policy forbids, nor one at a scale beyond its bound.

    Adapters can bring an erased concept back.

    Args:
        policy: Its `adapters` say what may be there.
        transformer: The model, or another part of a pipeline.
        admitted: What `admit` returned for all files that were let in; of use are those that this policy lists.
        part: What the pipeline calls it.
        parameters: All that it has by name, if that is known already.

    Raises:
        ModelError: It does.
    """
    _check_scales(policy, transformer)
    if policy.adapters is Adapters.ALLOW:
        return
    parameters = named_parameters(transformer) if parameters is None else parameters
    found = adapter_names(parameters)
    if policy.adapters is Adapters.ALLOWLIST and found:
        known = {digest for sha256, digest in admitted if sha256 in policy.adapter_allowlist}
        found = [name for name in found if _digest(_place_in_memory(part, name), parameters[name]) not in known]
    if not found:
        return
    wanted = (
        "Unload the adapters, or use a policy with `adapters: allow`."
        if policy.adapters is Adapters.DENY
        else "They are of no file that was let in: name each listed file to `guard(..., adapters=[...])` or to the "
        "handle's `admit`, in the format of PEFT and diffusers."
    )
    raise ModelError(
        f"policy {policy.name!r} says `adapters: {policy.adapters}`, and the model carries {len(found)} adapter "
        f"tensors such as {found[0]!r}. {wanted}"
    )


def _check_scales(policy: Policy, transformer: torch.nn.Module) -> None:
    if not policy.bounds_scale:
        return
    for layer, wrapped in wrapped_layers(named_parts(transformer)).items():
        for name, scale in wrapped.scales.items():
            if not abs(scale) <= policy.adapter_max_scale:
                raise ModelError(
                    f"policy {policy.name!r} says `adapter_max_scale: {policy.adapter_max_scale:g}`, and adapter "
                    f"{name} has {scale:g} on {layer!r}. Give it a smaller weight (`pipe.set_adapters`), or use a "
                    "policy that allows this scale."
                )


def _place_in_file(key: str) -> str:
    """The part and layer that a tensor of an adapter file is for; of a file that names no part, the transformer."""
    for old, new in _OLD_NAMES.items():
        key = key.replace(old, new)
    part, _, rest = key.partition(".")
    if part != "transformer" and not part.startswith("text_encoder"):
        part, rest = "transformer", key
    for prefix in _PREFIXES:
        rest = rest.removeprefix(prefix)
    return f"{part}.{_without_leaf(rest)}"


def _place_in_memory(part: str, name: str) -> str:
    """The same of an adapter's parameter in memory, which has the adapter's name in its own."""
    return f"{part}.{_without_leaf(name).rpartition('.')[0]}"


def _without_leaf(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".bias")


def _digest(place: str, tensor: torch.Tensor) -> str:
    """What one adapter tensor is recognised by: its place, shape, dtype and bits."""
    bits = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{place} {tuple(tensor.shape)} {tensor.dtype} ".encode() + bits).hexdigest()
