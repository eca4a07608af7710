"""LoRA and its kin on a loaded model, as PEFT puts them there: which layers they wrap, and whether their file is known.

An adapter adds to the weights of the layers that it wraps, masked elements included, and on other layers it can learn
an erased concept again. A policy says which adapters a model may carry: none, those of listed files, or any.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from safeflux.errors import ModelError
from safeflux.policyschema import Adapters, Policy
from safeflux.sites import adapter_names, parameter_shapes

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HOW_TO_KEEP = "Fuse it (`pipe.fuse_lora()`) and call the handle's `refresh()`, or unload it."
Admitted = frozenset[tuple[str, str]]
"""What adapters of known files are recognised by: the sha256 of a file, and of a tensor in it."""


@dataclass(frozen=True)
class Wrapped:
    """What adapters do to one layer that they wrap."""

    adapters: tuple[str, ...]
    """Names of the adapters that have weights for it."""
    fused: tuple[str, ...]
    """Those whose change lies in the layer's own weights now."""

    @property
    def unfused(self) -> tuple[str, ...]:
        """Those that add to the layer's output on every call, or will once they are switched on."""
        return tuple(name for name in self.adapters if name not in self.fused)


def wrapped_layers(transformer: torch.nn.Module) -> dict[str, Wrapped]:
    """Return every layer that carries adapters, under the name that it had before. Any library's wrapper is one."""
    found = {}
    for name, module in transformer.named_modules():
        if hasattr(module, "base_layer"):
            kinds = getattr(module, "adapter_layer_names", ())
            parts = [part for kind in kinds if hasattr(part := getattr(module, kind), "keys")]
            names = tuple(dict.fromkeys(key for part in parts for key in part))
            fused = tuple(getattr(module, "merged_adapters", ()))
            found[name.replace(".base_layer", "")] = Wrapped(names or ("unnamed",), fused)
    return found


def unfused_on(transformer: torch.nn.Module, tensors: Iterable[str]) -> dict[str, str]:
    """Return which of these tensors have adapters on top of them: tensor name to adapter names."""
    unfused = {layer: ", ".join(w.unfused) for layer, w in wrapped_layers(transformer).items() if w.unfused}
    layers = {name: name.rpartition(".")[0] for name in tensors}
    return {name: unfused[layer] for name, layer in layers.items() if layer in unfused}


def check_unfused(transformer: torch.nn.Module, tensors: Iterable[str]) -> None:
    """Make sure that no adapter adds to tensors that are to be masked.

    Raises:
        ModelError: One does.
    """
    for name, adapter in unfused_on(transformer, tensors).items():
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
    return {(sha256, _digest(tensor.to(dtype))) for tensor in tensors.values() for dtype in {tensor.dtype, *_DTYPES}}


def check_adapters(policy: Policy, transformer: torch.nn.Module, admitted: Admitted = frozenset()) -> None:
    """Make sure that the model carries no adapter that the policy forbids: adapters can bring an erased concept back.

    Args:
        policy: Its `adapters` say what may be there.
        transformer: The model.
        admitted: What `admit` returned for all files that were let in; of use are those that this policy lists.

    Raises:
        ModelError: It does.
    """
    if policy.adapters is Adapters.ALLOW:
        return
    found = adapter_names(parameter_shapes(transformer))
    if policy.adapters is Adapters.ALLOWLIST and found:
        parameters = dict(transformer.named_parameters(remove_duplicate=False))
        known = {digest for sha256, digest in admitted if sha256 in policy.adapter_allowlist}
        found = [name for name in found if _digest(parameters[name]) not in known]
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


def _digest(tensor: torch.Tensor) -> str:
    """What one adapter tensor is recognised by: its shape, dtype and bits."""
    bits = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} ".encode() + bits).hexdigest()
