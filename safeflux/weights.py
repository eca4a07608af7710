"""Which tensors of a loaded model hold the weights, and whether they can be written in place. Writes nothing."""

from collections.abc import Iterable
from typing import Any

import torch

from safeflux.errors import ModelError
from safeflux.sites import Site, base_names, spans

PLAIN = (torch.Tensor, torch.nn.Parameter)
"""The types of tensors that are what they seem: not packed, not a shard."""


def find_transformer(model: Any) -> torch.nn.Module:
    """Return the transformer of a pipeline, or the transformer itself.

    Raises:
        ModelError: Neither; or a compiled module, whose graph may have folded the weights in.
    """
    transformer = model if isinstance(model, torch.nn.Module) else getattr(model, "transformer", None)
    if not isinstance(transformer, torch.nn.Module):
        raise ModelError(f"expected a FLUX pipeline of diffusers or its transformer, got {type(model).__name__}")
    if uncompiled(transformer) is not transformer:
        raise ModelError("this model is compiled already. The order that works: load, guard, then torch.compile.")
    return transformer


def uncompiled(transformer: Any) -> Any:
    """Return the module inside torch.compile's wrapper, which shares its parameters; any other module as it is."""
    return getattr(transformer, "_orig_mod", transformer)


def named_weights(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter by name, tied ones under each of their names; without adapters, and as if without."""
    return base_names(dict(transformer.named_parameters(remove_duplicate=False)))


def offload_files(transformer: torch.nn.Module) -> dict[int, tuple[str, str]]:
    """For each parameter (by object) that diffusers' group offload keeps on disk now: the file, and its key there."""
    found = {}
    for module in transformer.modules():
        hook = getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).get("group_offloading")
        group: Any = getattr(hook, "group", None)
        if getattr(group, "offload_to_disk_path", None) and group._is_offloaded_to_disk:
            for tensor, key in group.tensor_to_key.items():
                found[id(tensor)] = (group.safetensors_file_path, key)
    return found


def check_in_memory(transformer: torch.nn.Module) -> None:
    """Make sure that parameters hold values at all: what is offloaded to disk leaves them as they happen to be.

    Raises:
        ModelError: They are offloaded to disk.
    """
    for path, _ in offload_files(transformer).values():
        raise ModelError(
            f"the weights are offloaded to {path} and its like. The order that works: load, guard, then enable group "
            "offload, with a folder that is empty: diffusers takes weights of an earlier run for these."
        )


def check_writable(transformer: torch.nn.Module, sites: Iterable[Site]) -> None:
    """Make sure that every tensor of the sites holds plain floating-point values that can be written in place.

    Raises:
        ModelError: A tensor is offloaded, quantised or sharded; the message gives the order that works.
    """
    check_in_memory(transformer)
    weights = named_weights(transformer)
    for site in sites:
        for span in spans(site):
            check_plain(span.tensor, weights[span.tensor])


def check_plain(name: str, tensor: torch.Tensor) -> None:
    """Make sure that one tensor is an ordinary float tensor with values.

    Raises:
        ModelError: It is offloaded, quantised or sharded.
    """
    if tensor.is_meta:
        raise ModelError(
            f"tensor {name!r} holds no values (meta device): the weights are offloaded. The order that works: load, "
            "guard, "
            "then enable sequential or group offload."
        )
    if type(tensor) not in PLAIN or not tensor.is_floating_point():
        raise ModelError(
            f"tensor {name!r}: expected a plain floating-point parameter, got {type(tensor).__name__} of "
            f"{tensor.dtype}. "
            "The order that works: load, guard, then quantise or shard."
        )
    if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise ModelError(f"tensor {name!r}: elements share memory (an expanded tensor); use its `.clone()` instead")
