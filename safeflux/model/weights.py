"""Which tensors of a loaded model hold the weights, and whether they can be written in place. Writes nothing."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from safeflux.errors import ModelError
from safeflux.families.fingerprint import TOLERANCE, fingerprint_of
from safeflux.families.sites import Site, Sites, base_names, find_sites, spans
from safeflux.model.watch.parts import check_whole, named_parameters, named_parts

Parts = Mapping[str, torch.nn.Module]
PLAIN = (torch.Tensor, torch.nn.Parameter)
"""The types of tensors that are what they seem: not packed, not a shard."""
_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""What diffusers' `fuse_qkv_projections` puts together, in the order of its rows."""
_ORDER = "The order that works: load, guard, then torch.compile."


def find_transformer(model: Any) -> torch.nn.Module:
    """Return the transformer of a pipeline, or the transformer itself.

    Raises:
        ModelError: Neither; or a compiled module, whose graph may have folded the weights in.
    """
    transformer = model if isinstance(model, torch.nn.Module) else getattr(model, "transformer", None)
    if not isinstance(transformer, torch.nn.Module):
        raise ModelError(f"expected a FLUX pipeline of diffusers or its transformer, got {type(model).__name__}")
    if uncompiled(transformer) is not transformer:
        raise ModelError(f"this model is compiled already. {_ORDER}")
    check_whole(transformer)
    return transformer


def check_not_compiled(transformer: torch.nn.Module) -> None:
    """Make sure that neither the module nor a part of it was compiled in place (`module.compile()`, or its forward).

    Raises:
        ModelError: One was: of what a backend made of the weights nothing is known.
    """
    for name, module in named_parts(transformer).items():
        if module._compiled_call_impl is not None or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            raise ModelError(f"module {name or type(module).__name__!r} is compiled already. {_ORDER}")


def uncompiled(transformer: Any) -> Any:
    """Return the module inside torch.compile's wrapper, which shares its parameters; any other module as it is."""
    kind = type(transformer)  # by name, since importing the compiler takes seconds
    is_wrapper = (kind.__module__, kind.__name__) == ("torch._dynamo.eval_frame", "OptimizedModule")
    return transformer._orig_mod if is_wrapper else transformer


def named_weights(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter by name, tied ones under each of their names; without adapters, and as if without.

    Nor are matrices among them that diffusers fused from others (`fused_rows`).
    """
    weights = base_names(named_parameters(transformer))
    fused = {rows.tensor for rows in fused_rows(named_parts(transformer)).values()}
    return {name: tensor for name, tensor in weights.items() if name not in fused}


def sites_of(transformer: torch.nn.Module) -> Sites:
    """Find every site of a transformer, as `find_sites` does.

    Raises:
        ModelError: It is no FLUX; or its parts are not in their places now.
    """
    return find_sites({name: tuple(parameter.shape) for name, parameter in named_parameters(transformer).items()})


class Rows(NamedTuple):
    """Some rows of a tensor."""

    tensor: str
    start: int
    stop: int


def fused_rows(parts: Parts) -> dict[str, Rows]:
    """For each parameter that `fuse_qkv_projections` copied: the rows of another that forward reads in its place.

    Args:
        parts: All modules of the transformer, by name.
    """
    found = {}
    for path, module in parts.items():
        if not vars(module).get("fused_projections"):
            continue
        for fused, layers in _FUSED.items():
            if fused not in module._modules:
                continue
            start = 0
            for layer in layers:
                held = dict(base_names(dict(module.get_submodule(layer).named_parameters())))
                stop = start + held["weight"].shape[0]
                found.update({f"{path}.{layer}.{leaf}": Rows(f"{path}.{fused}.{leaf}", start, stop) for leaf in held})
                start = stop
    return found


def check_not_fused(transformer: torch.nn.Module) -> None:
    """Make sure that forward reads q, k and v where they are written.

    Raises:
        ModelError: `fuse_qkv_projections` made copies.
    """
    for name, rows in fused_rows(named_parts(transformer)).items():
        raise ModelError(
            f"tensor {name!r}: forward reads a copy of it, {rows.tensor!r} (fuse_qkv_projections), which no write "
            "reaches. The order that works: `unfuse_qkv_projections()`, guard, swap, refresh or undo, then "
            "`fuse_qkv_projections()` again."
        )


def fingerprint(transformer: torch.nn.Module) -> str:
    """Return the fingerprint of a transformer's weights as they are now (`fingerprint_of`), adapters left out.

    It takes milliseconds whatever the model's size.

    Raises:
        ModelError: A sampled value is not finite, or a tensor is offloaded, quantised or sharded.
    """
    check_in_memory(transformer)
    weights = named_weights(transformer)
    for name, tensor in weights.items():
        check_plain(name, tensor)
    return fingerprint_of(_InMemory(weights))


@dataclass(frozen=True)
class _InMemory:
    """Loaded parameters, as `fingerprint_of` asks for them."""

    tensors: Mapping[str, torch.Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `fingerprint.Weights`."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def coarsest(self) -> str:
        """See `fingerprint.Weights`."""
        return max((coarseness_of(tensor) for tensor in self.tensors.values()), key=TOLERANCE.__getitem__, default="")

    def take(self, name: str, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """See `fingerprint.Weights`."""
        return take(self.tensors[name], places)


def coarseness_of(tensor: torch.Tensor) -> str:
    """What the numbers of a tensor add to the name of a fingerprint, a key of `fingerprint.TOLERANCE`."""
    return next((end for end in ("-e5m2", "-e4m3") if "float8_" + end[1:] in str(tensor.dtype)), "")


@torch.no_grad()
def take(tensor: torch.Tensor, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return elements of a tensor, by their row-major indices."""
    values = tensor.detach()
    index = torch.from_numpy(places).to(values.device)
    # torch cannot pick elements of float8, but can of bytes
    is_byte = values.element_size() == 1
    picked = values.view(torch.uint8).take(index).view(values.dtype) if is_byte else values.take(index)
    return picked.to(device="cpu", dtype=torch.float64).numpy()


def offload_groups(parts: Parts) -> Iterator[Any]:
    """Yield the groups of diffusers' group offload.

    Args:
        parts: All modules of the transformer, by name.
    """
    for module in parts.values():
        hook = getattr(vars(module).get("_diffusers_hook"), "hooks", {}).get("group_offloading")
        if (group := getattr(hook, "group", None)) is not None:
            yield group


def offload_files(groups: Iterable[Any]) -> dict[int, tuple[str, str]]:
    """For each parameter (by object) that diffusers' group offload keeps on disk now: the file, and its key there."""
    return {
        id(tensor): (group.safetensors_file_path, key)
        for group in groups
        if group.offload_to_disk_path and group._is_offloaded_to_disk
        for tensor, key in group.tensor_to_key.items()
    }


def offload_copies(groups: Iterable[Any]) -> dict[int, torch.Tensor]:
    """For each parameter (by object) under group offload with streams: the tensor on the CPU that forward loads.

    Where the group is off its device, the parameter is in the same memory. Where it is on it, what is written to the
    parameter is lost with it.
    """
    return {id(tensor): copy for group in groups for tensor, copy in group.cpu_param_dict.items()}


def check_in_memory(transformer: torch.nn.Module) -> None:
    """Make sure that parameters hold values at all: what is offloaded to disk leaves them as they happen to be.

    Raises:
        ModelError: They are offloaded to disk.
    """
    for path, _ in offload_files(offload_groups(named_parts(transformer))).values():
        raise ModelError(
            f"the weights are offloaded to {path} and its like. The order that works: load, guard, then enable group "
            "offload, with a folder that is empty: diffusers takes weights of an earlier run for these."
        )


def is_frozen(tensor: torch.Tensor) -> bool:
    """Whether torch.compile has put the values into a graph for good (`torch._inductor.config.freezing`).

    Then a copy is what forward reads. Dynamo guards such a tensor by its identity, and notes that on it. If it has
    discarded the values too, an empty tensor is left.
    """
    return getattr(tensor, "_dynamo_static_input_type", None) == "guarded" or hasattr(tensor, "erased_name")


def check_not_frozen(transformer: torch.nn.Module) -> None:
    """Make sure that no compiled graph holds values of its own, which a write would not reach.

    Raises:
        ModelError: One does.
    """
    for name, tensor in named_weights(transformer).items():
        if is_frozen(tensor):
            raise ModelError(
                f"tensor {name!r}: a compiled graph holds a copy of its values (torch._inductor.config.freezing), "
                "which no write reaches. The order that works: load, guard, then compile; for another policy load the "
                "model again, or compile without freezing."
            )


def check_reached(transformer: torch.nn.Module) -> None:
    """Make sure that what is written to the parameters is what forward reads.

    Raises:
        ModelError: A compiled graph, fused projections or group offload with streams draw from copies, or group
            offload from files; or the model's parts are not in their places now.
    """
    check_whole(transformer)
    check_not_frozen(transformer)
    check_not_fused(transformer)
    check_in_memory(transformer)
    copies = offload_copies(offload_groups(named_parts(transformer)))
    for name, tensor in named_weights(transformer).items():
        copy = copies.get(id(tensor))
        if copy is not None and type(tensor) in PLAIN and copy.data_ptr() != tensor.data_ptr():
            raise ModelError(
                f"tensor {name!r} is on {tensor.device}, and group offload with streams draws from a copy on "
                f"{copy.device}, which no write reaches: a picture is being drawn, was given up halfway, or the model "
                "was moved or cast since group offload was enabled. Draw a picture to its end, then try again; or "
                "load, guard, cast, then enable group offload."
            )


def check_writable(transformer: torch.nn.Module, sites: Iterable[Site]) -> None:
    """Make sure that every tensor of the sites holds plain floating-point values that can be written in place.

    Raises:
        ModelError: A tensor is offloaded, quantised, sharded or frozen; the message gives the order that works.
    """
    check_reached(transformer)
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
            "guard, then enable sequential or group offload."
        )
    if type(tensor) not in PLAIN or not tensor.is_floating_point():
        raise ModelError(
            f"tensor {name!r}: expected a plain floating-point parameter, got {type(tensor).__name__} of "
            f"{tensor.dtype}. The order that works: load, guard, then quantise or shard."
        )
    if tensor.is_neg():
        raise ModelError(f"tensor {name!r}: is a negated view of its memory; use its `.clone()` instead")
    if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise ModelError(f"tensor {name!r}: elements share memory (an expanded tensor); use its `.clone()` instead")
